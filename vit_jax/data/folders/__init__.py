"""Finds the images of a folder: splits, classes, and what is skipped."""
