"""The parts of a run: its folder, settings, checkpoints, metrics and stops.

Imports `train_step` and the packages below it.
"""
