"""Examples in memory: their order, batches without tf.data, crops in JAX.

Imports only the package `data` and what it imports.
"""
