"""Threads of linear algebra, of which small problems should have one.

The matrices of a fit have some hundred rows. Sharing one out costs more than it saves, and where fewer processors are
free than threads are started (containers with a quota, a busy machine, several fits at once) threads wait for one
another: a fit of three seconds took fifteen on two processors that were not all its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

SMALL = 1_000_000  # numbers in the largest matrix


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """One thread for torch, BLAS and OpenMP inside, where matrices have no more than about a million numbers.

    >>> with threads_for(1000):
    ...     torch.get_num_threads()
    1
    """
    if numbers > SMALL:
        yield
        return
    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
