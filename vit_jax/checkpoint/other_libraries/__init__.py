"""What files of timm and Hugging Face say about their weights."""
