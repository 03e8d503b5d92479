"""One file for each command of `python -m vit_jax`, and what they share.

Imports everything below `main`. A command imports JAX and TensorFlow when it
has parsed its arguments, so that --help and messages are immediate.
"""
