"""One file for each command of `python -m vit_jax`, and what they share.

Imports everything below `main`. A command imports JAX and TensorFlow only when
it runs, so that lists and errors come at once.
"""
