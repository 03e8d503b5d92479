"""The parts of a run: its folder, settings, checkpoints, metrics and stops.

Imports `base_config`, `checkpoint`, `console`, `data`, `evaluators`, `files`,
`inference`, `models`, `optim`, `parallel`, `tasks`, `train_state` and
`train_step`.
"""
