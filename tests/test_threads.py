"""One thread for small linear algebra, and what was before afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import ude
from ude.threads import SMALL, threads_for


def _blas() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_small_work_has_one_thread_inside_and_as_many_as_before_outside() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(limits=2):
            with threads_for(SMALL):
                assert torch.get_num_threads() == 1
                assert _blas() == {1}
            assert torch.get_num_threads() == 2
            assert _blas() == {2}
            with threads_for(SMALL + 1):
                assert torch.get_num_threads() == 2
                assert _blas() == {2}
            with pytest.raises(KeyboardInterrupt), threads_for(1):
                raise KeyboardInterrupt
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_fit_of_little_data_has_one_thread() -> None:
    seen = []
    t = np.linspace(0.0, 2.0, 12)
    data = ude.Dataset.from_arrays(t, np.exp(-t), "x")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ude.fit(
            ude.UDE("dx/dt = -k*x", fit="k"),
            data,
            callback=lambda _: seen.append(torch.get_num_threads()),
            progress=False,
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
