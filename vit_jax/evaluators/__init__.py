"""Numbers over a whole data set.

Imports `optim`, `inference` and what is below them.
"""
