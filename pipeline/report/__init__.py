"""Figures and the page; knows the tables of the analysis only."""
