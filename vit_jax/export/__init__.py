"""Exports weights for other programs.

Imports `checkpoint` and the packages below it.
"""
