"""Reads the labels of images from tables and from lists of files."""
