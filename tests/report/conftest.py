"""The made-up run and the published table, for all tests of the report."""

from tests.report.made import made, paper

__all__ = ["made", "paper"]  # fixtures are pytest's to find
