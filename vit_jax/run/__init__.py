"""The run folder and the life of a run: settings, checkpoints, metrics, stops.

Imports `train_step` and the packages below it.
"""
