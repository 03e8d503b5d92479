"""Published weights: which exist, and how they are downloaded.

Imports `console` and `checkpoint.npz_names`.
"""
