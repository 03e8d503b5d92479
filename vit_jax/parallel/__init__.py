"""Device mesh, sharding of arrays, and communication between processes.

Imports nothing else from `vit_jax`.
"""
