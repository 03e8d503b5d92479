"""Metrics of arrays, in NumPy: they need neither a model nor a dataset."""
