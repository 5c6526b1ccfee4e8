"""Tests of pipeline/locate/."""
