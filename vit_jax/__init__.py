"""Vision Transformers in JAX and Flax: train, fine-tune, measure."""

__version__ = '0.1.0'
