"""Tests of stages/, of the whole pipeline through DVC."""
