"""Changing what a model says: the protocol of an editing method, and a file for each method."""
