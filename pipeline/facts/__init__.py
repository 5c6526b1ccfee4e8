"""Facts: what they are, where they are read, which the model knows."""
