"""Inference with trained models: classes of images, embeddings.

Imports `checkpoint`, `console`, `data`, `files`, `models` and `parallel`.
"""
