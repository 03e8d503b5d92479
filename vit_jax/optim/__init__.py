"""Optimizers, schedules and losses.

Imports nothing of ours.
"""
