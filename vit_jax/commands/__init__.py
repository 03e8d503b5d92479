"""One file for each command of `python -m vit_jax`, and files that they share.

Imports all other packages. A command imports JAX and TensorFlow after it has
parsed its arguments, so that --help and messages about wrong arguments appear
at once.
"""
