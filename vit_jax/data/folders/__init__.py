"""Finds the images of a folder: splits, classes, and what is skipped.

Imports only the package `data` and what it imports.
"""
