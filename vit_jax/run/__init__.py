"""The parts of a run: its folder, settings, checkpoints, metrics and stops.

Imports `train_step` and the packages above it in docs/code_map.md.
"""
