"""What every test gets: fixed seeds, one thread, and Hypothesis without randomness."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

from ude.engines import FUSED
from ude.threads import threads_for

# Derandomized: the same examples on every run and every machine. No deadline: a slow machine is not a wrong result.
hypothesis.settings.register_profile("ude", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ude")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tests are many small tensors: threads cost more than they gain, and sums keep their order.

    The processes that tests start read the environment.
    """
    with threads_for(0), pytest.MonkeyPatch.context() as environment:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setenv(name, "1")
        yield


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
