"""Examples in memory: their order, and batches without tf.data.

Imports only the package `data` and what it imports.
"""
