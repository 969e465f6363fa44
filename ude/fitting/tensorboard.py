"""The course of a fit as scalars for TensorBoard."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

from ude.errors import BackendMissing
from ude.fitting.iteration import Iteration


class TensorBoard:
    """A callback of `fit`, or of a stage, that writes scalars of every iteration. Look: ``tensorboard --logdir logs``.

    Scalars, all against the iterations of the whole fit: ``STAGE/loss``, ``STAGE/validation`` (with validation data),
    ``STAGE/learning rate`` (of Adam), ``evaluations`` of the loss in the stage, ``solver steps`` since the start, and
    each parameter as ``parameters/NAME``.

    directory: where the events go, a folder a fit; each process that fits opens a file of its own there.

    Raises BackendMissing where tensorboard is not installed.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> board = ude.fitting.TensorBoard("logs/first")
    >>> fit = ude.fit(model, data, stages="single shooting", callback=board, holdout=0, progress=False)
    >>> board.close()
    >>> from pathlib import Path
    >>> [file.name.split(".")[0] for file in Path("logs/first").iterdir()]
    ['events']
    """

    def __init__(self, directory: str | Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise BackendMissing(
                "TensorBoard needs tensorboard",
                got="no module tensorboard",
                fix="Install it: python -m pip install 'ude[tensorboard]'.",
            )
        self.directory = Path(directory)
        self._writer: Any = None

    def __call__(self, iteration: Iteration) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory))
        numbers = {
            f"{iteration.stage}/loss": iteration.loss,
            f"{iteration.stage}/validation": iteration.validation,
            f"{iteration.stage}/learning rate": iteration.rate,
            "evaluations": float(iteration.evaluations),
            "solver steps": float(iteration.steps),
            **{f"parameters/{name}": value for name, value in iteration.model.values().items()},
        }
        for name, number in numbers.items():
            if not math.isnan(number):
                self._writer.add_scalar(name, number, iteration.total)

    def close(self) -> None:
        """Write what is still in memory, which also happens every two minutes and at the end of the program."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        # another process, as of `fit_ensemble`, opens its own file
        return {"directory": self.directory, "_writer": None}
