"""Optimizers and learning-rate schedules.

Imports `models`.
"""
