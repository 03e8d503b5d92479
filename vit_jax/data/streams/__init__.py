"""Datasets that are read in order: TFDS and tar files.

Imports only the package `data` and what it imports.
"""
