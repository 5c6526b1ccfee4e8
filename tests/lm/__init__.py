"""Tests of pipeline/lm/."""
