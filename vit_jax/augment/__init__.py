"""Random changes to a training batch on the device, in pure JAX.

Imports nothing else from `vit_jax`. `augmentation.py` has the settings and the
order of the changes.
"""
