"""Published weights: what there is, and how it gets here.

Imports `console` and the rest of `checkpoint`.
"""
