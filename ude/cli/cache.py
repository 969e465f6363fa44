"""``ude cache``: the compiled kernels."""

from __future__ import annotations

from typing import Annotated

import typer

from ude.cli.console import OK, Console, Json, counted


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete the compiled kernels; they are compiled again.")
    ] = False,
    json: Json = False,
) -> int:
    """Show where compiled kernels are kept, how many and how large they are; or delete them."""
    from ude.compile import build

    console = Console(json=json)
    folder = build.cache_dir()
    if clear:
        files, size = build.clear_cache()
        text = f"Deleted {counted(files, 'file')}, {as_bytes(size)}, in {folder}"
        console.result(text, {"folder": str(folder), "deleted_files": files, "deleted_bytes": size})
        return OK
    _, size = build.cache_size()
    kernels, missing = build.cached_kernels(), build.why_no_compiler()
    lines = [f"{counted(kernels, 'kernel')}, {as_bytes(size)}, in {folder}"]
    if missing is not None:
        lines.append(f"Nothing can be compiled here: {missing}")
    values = {"folder": str(folder), "kernels": kernels, "bytes": size, "why_no_compiler": missing}
    console.result("\n".join(lines), values)
    return OK


def as_bytes(size: int) -> str:
    """A size as people read it, in powers of 1000."""
    number, units = float(size), ["bytes", "kB", "MB", "GB"]
    while number >= 999.95 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} {units[0]}" if units[0] == "bytes" else f"{number:.1f} {units[0]}"
