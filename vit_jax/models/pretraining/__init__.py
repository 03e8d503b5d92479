"""Models around an encoder that only pre-training uses."""
