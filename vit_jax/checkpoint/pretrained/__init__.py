"""Published weights: which exist, how they are downloaded, their decoders.

Imports `console`, `checkpoint.npz_names` and `checkpoint.other_libraries`.
"""
