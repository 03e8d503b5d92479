"""Evaluators: metrics over an entire dataset.

Imports `checkpoint`, `console`, `data`, `inference`, `optim` and `parallel`.
"""
