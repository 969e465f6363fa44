"""Threads for the chunks of a solve: torch's own where they can be had.

After an operation torch's OpenMP threads spin for some milliseconds, waiting for the next. Threads of ours beside them
would share the cores with that; so the chunks are given to the very same threads, by the function into which compilers
turn ``#pragma omp parallel``. Where torch runs on something else, threads of Python do (C lets go of Python's lock).
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch


def run_on_threads(work: Any, data: int, count: int) -> None:
    """Call the C function ``void work(void *data)`` on as many threads as torch has, or on one where `count` is 1."""
    threads = 1 if count == 1 else torch.get_num_threads()
    if threads == 1:
        work(data)
        return
    parallel = _openmp()
    if parallel is not None:
        # always the whole team: one of another size would be created each time
        parallel(ctypes.cast(work, ctypes.c_void_p), data, threads, 0)
        return
    for done in [_pool(threads).submit(work, data) for _ in range(threads)]:
        done.result()


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP library that torch has loaded, or None."""
    if "openmp" not in torch.__config__.parallel_info().lower().split("parallel backend:")[-1]:
        return None
    try:
        parallel: Any = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):  # not on every system, and not by every OpenMP
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return parallel


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ude")
