"""Exports weights for other programs.

Imports `checkpoint`, `data` and `models`.
"""
