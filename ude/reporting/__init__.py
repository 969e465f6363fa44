"""Plots and pages drawn from plain arrays; knows nothing of the rest of the house."""

from __future__ import annotations
