"""Tests of pipeline/edit/."""
