"""Optimizers and learning-rate schedules.

Imports no other module of vit_jax.
"""
