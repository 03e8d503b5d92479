"""Random changes to a training batch on the device, in pure JAX.

Imports nothing else of vit_jax. `augmentation.py` has the settings and the
order of the changes.
"""
