"""Layers: the building blocks of the models."""
