"""Evaluators: metrics over an entire dataset.

Imports `optim`, `inference` and the packages below them.
"""
