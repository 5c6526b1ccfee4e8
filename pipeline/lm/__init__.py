"""One language model and how to run it."""
