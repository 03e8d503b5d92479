"""Reads the labels of images from tables and from lists of files.

Imports only the package `data` and what it imports.
"""
