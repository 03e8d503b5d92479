"""A trained model in use: classes of images, embeddings.

Imports `checkpoint`, `data`, `models` and what is below them.
"""
