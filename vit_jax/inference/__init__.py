"""Inference with trained models: classes of images, embeddings.

Imports `checkpoint`, `data`, `models` and the packages below them.
"""
