"""What files of timm and Hugging Face say about their weights.

Imports `checkpoint`, `json_files` and `models`.
"""
