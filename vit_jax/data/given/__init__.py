"""Data that the caller gives: arrays, an .npz file, batches."""
