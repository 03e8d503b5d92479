"""The cost of a run before it starts: memory, FLOPs, sharding of parameters.

Imports `base_config`, `console`, `evaluators`, `optim`, `parallel` and `run`.
"""
