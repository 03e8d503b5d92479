"""Examples in memory: their order, batches without tf.data, crops in JAX."""
