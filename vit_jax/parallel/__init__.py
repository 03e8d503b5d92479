"""Device mesh, sharding of arrays, and communication between processes.

Imports `console`.
"""
