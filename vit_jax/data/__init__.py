"""From files to batches: data sets, image preprocessing, tokenizers.

Imports `console` and `parallel`.
"""
