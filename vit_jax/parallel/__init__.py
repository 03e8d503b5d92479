"""Devices and processes: the mesh, where arrays lie on it, who does what.

Imports nothing of ours.
"""
