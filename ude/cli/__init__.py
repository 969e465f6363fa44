"""The command ``ude``; docs/commands.md describes it."""

from __future__ import annotations

from ude.cli.app import app, main

__all__ = ["app", "main"]
