"""The library: tracing, editing, scoring and regressions for any Hugging Face causal language model.

Nothing here knows of DVC, and only `pipeline.params` reads params.yaml.
"""
