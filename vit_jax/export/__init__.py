"""Exports weights for other programs.

Imports `checkpoint`, `console`, `files` and `models`.
"""
