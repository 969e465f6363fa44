"""What every test gets: fixed seeds, one thread, and Hypothesis without randomness."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from ude.engines import FUSED

# Derandomised: the same examples on every run and every machine. No deadline: a slow machine is not a wrong result.
hypothesis.settings.register_profile("ude", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ude")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tests are many small tensors: threads cost more than they gain, and sums keep their order.

    The processes that tests start read the environment.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers for a test whether it runs alone or after others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for libraries that still read the global state)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _kernels_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No kernel that a user compiled, and none left behind."""
    before = os.environ.get("UDE_CACHE_DIR")
    os.environ["UDE_CACHE_DIR"] = str(tmp_path_factory.mktemp("kernels"))
    yield
    if before is None:
        del os.environ["UDE_CACHE_DIR"]
    else:
        os.environ["UDE_CACHE_DIR"] = before


@pytest.fixture(autouse=True)
def _no_kernel_of_another_test() -> None:
    """A test takes the same engines whether it runs alone or after others."""
    FUSED.forget()
