"""Image files: their kinds, one decoder for all of them, and its checks."""
