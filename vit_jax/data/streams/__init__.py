"""Datasets that are read in order: TFDS and tar files."""
