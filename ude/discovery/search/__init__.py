"""Searches for formulas: exact best subsets, Operon, PySR and SINDy, each behind `SymbolicRegressor`."""
