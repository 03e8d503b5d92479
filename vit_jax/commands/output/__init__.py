"""What commands measure and print, and the files that they write."""
