"""Candidate formulas put back into the differential equations and refitted on the observed trajectories."""
