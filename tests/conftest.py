"""What every test gets: fixed seeds, one thread, and Hypothesis without randomness."""

from __future__ import annotations

import random

import hypothesis
import numpy as np
import pytest
import torch

# Derandomised: the same examples on every run and every machine. No deadline: a slow machine is not a wrong result.
hypothesis.settings.register_profile("ude", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("ude")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests are many small tensors: threads cost more than they gain, and sums keep their order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers for a test whether it runs alone or after others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for libraries that still read the global state)
    torch.manual_seed(0)
