"""What a run needs, before it is started: memory, work, layout.

Imports `run` and what is below it.
"""
