"""What commands print, and the files of predictions that they write.

Imports `console` and `data`.
"""
