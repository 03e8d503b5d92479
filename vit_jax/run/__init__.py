"""A run's folder and its life: settings, checkpoints, numbers, stopping.

Imports `train_step` and what is below it.
"""
