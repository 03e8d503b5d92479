"""Metrics of arrays, in NumPy: they need neither a model nor a dataset.

Imports no other package of vit_jax.
"""
