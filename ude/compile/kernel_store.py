"""Kernels that another process left: found by the name of what they were made of, without tracing f again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ude.compile.build import cached_kernel, get_metadata, put_metadata

# A constant of f with more numbers than this is not written down, and f is traced again by every process.
_MOST_NUMBERS = 4096

#: Where a captured tensor stands among the fingerprint's; or the tensor, when f made it itself.
Place = int | Tensor


@dataclass(frozen=True, eq=False)
class Left:
    """What a process left: see `_Built` of engine.py."""

    path: Path
    uniform_size: int
    places: tuple[Place, ...]
    frozen: tuple[tuple[Place, Tensor], ...]
    plain: bool
    work: tuple[int, int]


def leave(
    name: str | None,
    path: Path,
    uniform_size: int,
    places: Sequence[Place],
    frozen: Sequence[tuple[Place, Tensor]],
    *,
    plain: bool,
    work: tuple[int, int],
) -> None:
    """Write down what belongs to a kernel; nothing where its name does not last or its constants are long."""
    tensors = [part for part in (*places, *(item for pair in frozen for item in pair)) if isinstance(part, Tensor)]
    if name is None or any(tensor.numel() > _MOST_NUMBERS for tensor in tensors):
        return
    put_metadata(
        name,
        {
            "kernel": path.parent.name,
            "uniform_size": uniform_size,
            "places": [_written(place) for place in places],
            "frozen": [[_written(place), _written(known)] for place, known in frozen],
            "plain": plain,
            "work": list(work),
            "inspected": True,
        },
    )


def take(name: str | None) -> Left | None:
    """Find a kernel by its name."""
    known = None if name is None else get_metadata(name)
    path = None if known is None else cached_kernel(str(known["kernel"]))
    # kernels of earlier releases may have frozen what left torch
    if known is None or path is None or "inspected" not in known:
        return None
    return Left(
        path=path,
        uniform_size=int(known["uniform_size"]),
        places=tuple(_read(place) for place in known["places"]),
        frozen=tuple((_read(place), _tensor(numbers)) for place, numbers in known["frozen"]),
        plain=bool(known["plain"]),
        work=(int(known["work"][0]), int(known["work"][1])),
    )


def _written(place: Place) -> Any:
    if isinstance(place, int):
        return place
    kind = str(place.dtype).removeprefix("torch.")
    return {"dtype": kind, "shape": list(place.shape), "numbers": place.detach().reshape(-1).tolist()}


def _read(written: Any) -> Place:
    return written if isinstance(written, int) else _tensor(written)


def _tensor(written: Any) -> Tensor:
    return torch.tensor(written["numbers"], dtype=getattr(torch, written["dtype"])).reshape(written["shape"])
