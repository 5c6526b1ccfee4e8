"""Where a model keeps a fact."""
