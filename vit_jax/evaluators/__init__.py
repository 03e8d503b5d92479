"""Evaluators: metrics over an entire dataset.

Imports `console` and `parallel`.
"""
