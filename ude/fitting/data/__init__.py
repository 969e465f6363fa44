"""Measurements: data sets, the tables they are read from, and how they are split."""
