"""What a run starts from: settings of weights and data, weights, features.

Imports from `run`: `given`, `messages`, `run_files` and `setup`.
"""
