"""Calls benchmarks/handwritten.c: loss and gradient of the Lotka-Volterra UDE, as a programmer would write it."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import ude

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")


def build(folder: str) -> ctypes.CDLL:
    """Compile and load it."""
    library = Path(folder) / "handwritten.so"
    subprocess.run(["cc", *FLAGS, str(Path(__file__).with_suffix(".c")), "-o", str(library), "-lm"], check=True)
    loaded = ctypes.CDLL(str(library))
    pointer = ctypes.c_void_p
    loaded.handwritten.restype = ctypes.c_double
    loaded.handwritten.argtypes = [
        *[pointer] * 4,
        ctypes.c_long,
        ctypes.c_double,
        ctypes.c_double,
        pointer,
        ctypes.c_int,
        pointer,
        pointer,
    ]
    return loaded


def tableau() -> Tensor:
    """Tsit5 as the struct Tableau of the C file lays it out."""
    numbers = ude.Tsit5().tableau
    a = [[*row, *[0.0] * (numbers.stages - len(row))] for row in numbers.a]
    parts = [a, numbers.b, numbers.b_error, numbers.interpolant]
    return torch.cat([torch.tensor(part, dtype=torch.float64).reshape(-1) for part in parts])


def gradient_of(
    net: nn.Module, u0: Tensor, saves: Tensor, tolerance: float
) -> Callable[[], tuple[float, Tensor, Tensor]]:
    """A function of nothing that gives loss, flat gradient of the parameters, and values."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(folder)
    numbers, u0, saves = tableau(), u0.contiguous(), saves.contiguous()
    parameters = [one.detach() for one in net.parameters()]
    values = torch.empty(len(u0), len(saves), 2, dtype=torch.float64)
    accepted = ctypes.c_long()

    def run() -> tuple[float, Tensor, Tensor]:
        flat = torch.cat([one.reshape(-1) for one in parameters])
        bar = torch.empty_like(flat)
        addresses = [one.data_ptr() for one in (flat, bar, numbers, u0)]
        loss = library.handwritten(
            *addresses,
            len(u0),
            float(saves[-1]),
            tolerance,
            saves.data_ptr(),
            len(saves),
            values.data_ptr(),
            ctypes.byref(accepted),
        )
        return loss, bar, values

    return run
