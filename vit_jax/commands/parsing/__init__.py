"""Parsers of command lines.

Imports `base_config` and `console`.
"""
