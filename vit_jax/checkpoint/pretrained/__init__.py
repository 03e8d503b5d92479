"""Published weights: which exist, and how they are downloaded.

Imports `console` and the rest of `checkpoint`.
"""
