"""Data that the caller gives: arrays, an .npz file, batches.

Imports only the package `data` and what it imports.
"""
