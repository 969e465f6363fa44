"""Equations in other languages."""
