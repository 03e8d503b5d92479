"""What commands measure and print, and the files that they write.

Imports `base_config`, `console`, `data`, `evaluators`, `inference`, `parallel`,
`run` and `tasks`.
"""
