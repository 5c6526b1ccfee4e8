"""Tests of pipeline/compute/."""
