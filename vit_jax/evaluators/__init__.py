"""Evaluators: metrics over an entire dataset.

Imports `checkpoint`, `console`, `data`, `files`, `inference`, `optim` and
`parallel`.
"""
