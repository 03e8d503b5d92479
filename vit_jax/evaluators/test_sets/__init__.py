"""Evaluators on published test sets: variants of ImageNet, captions.

Imports `checkpoint` and `data`, and modules of `evaluators`.
"""
