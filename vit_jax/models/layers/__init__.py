"""What the models are made of.

Imports nothing outside of `models`.
"""
