"""Smooth curves through noisy data, before any equation is known."""
