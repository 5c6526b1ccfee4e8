"""The library: tracing, editing, scoring and regressions for any Hugging Face causal language model.

Nothing here knows of DVC, and only `pipeline.settings.params` reads params.yaml.
"""
