"""Files that may be damaged, or made by a stranger, are checked when read.

Imports nothing else from `vit_jax`.
"""
