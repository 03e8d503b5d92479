"""The cost of a run before it starts: memory, FLOPs, sharding of parameters.

Imports `run` and the packages below it.
"""
