"""Optimizers and schedules of the learning rate.

Imports nothing of ours.
"""
