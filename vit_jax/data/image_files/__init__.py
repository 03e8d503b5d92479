"""Image files: their kinds, and one decoder for training and prediction.

This package may import `data.tensorflow`. It imports Pillow.
"""
