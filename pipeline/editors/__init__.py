"""Editing methods, one file each; `EDITORS` is the one list of them, and `base` says what a method is."""
