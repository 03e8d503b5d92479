"""Layers: the building blocks of the models.

Imports only from `models`.
"""
