"""Which combination of candidate formulas the observed trajectories choose."""
