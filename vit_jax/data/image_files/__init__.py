"""Image files: their kinds, one decoder for all of them, and its checks.

Imports only the package `data` and what it imports.
"""
