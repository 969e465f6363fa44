"""Fits on disk: saved fits, the folder of a fit that may be interrupted, the log of evaluations."""
