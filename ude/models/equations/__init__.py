"""Equations as text or SymPy: parser, printer, systems of equations, and their torch functions."""
