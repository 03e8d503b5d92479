"""Evaluators: metrics over an entire dataset.

Imports `console`, `inference` and `parallel`.
"""
