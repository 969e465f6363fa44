"""Plots and pages drawn from plain arrays; knows nothing of the rest of the package."""

from __future__ import annotations
