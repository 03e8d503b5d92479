"""From files to batches: datasets, image preprocessing, tokenizers.

Imports `console` and `parallel`.
"""
