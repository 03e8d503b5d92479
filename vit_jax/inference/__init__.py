"""Inference with trained models: classes of images, embeddings.

Imports `checkpoint`, `console`, `data`, `models` and `parallel`.
"""
