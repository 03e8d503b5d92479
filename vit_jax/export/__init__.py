"""Weights for other programs.

Imports `checkpoint` and what is below it.
"""
