"""Tests of pipeline/measure/."""
