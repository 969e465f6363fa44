"""The folder of a fit that may be interrupted: who it belongs to, what each finished stage left, and the open log.

``run.json``             what the fit was asked to do; another fit is refused
``stage-0.safetensors``  the tensors after the first stage; ``stage-0.json`` its history and counts
``stage-1.log``          the evaluations of the stage that runs now (`evaluations.EvaluationLog`)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ude.compile.fingerprint import fingerprint
from ude.errors import InputError
from ude.models import MLP, FunctionModel, Model, Neural

_RUN = "run.json"
FORMAT = 1


class FitFolder:
    """Raises InputError when the folder holds another fit, or cannot be written."""

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        self.path = Path(path)
        wanted = json.loads(json.dumps({"format": FORMAT, **identity}))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / _RUN).exists():
                replace_file(self.path / _RUN, lambda path: path.write_text(json.dumps(wanted, indent=2) + "\n"))
            found = json.loads((self.path / _RUN).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"the run folder {self.path} cannot be used", got=str(error), fix="Choose another folder."
            ) from error
        other = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
        if other:
            raise InputError(
                f"{self.path} holds the run of another fit",
                expected="the same arguments as those that it was begun with",
                got=f"other {', '.join(other)}",
                fix="Choose another folder, or delete this one.",
            )

    def log_path(self, stage: int) -> Path:
        return self.path / f"stage-{stage}.log"

    def finished(self, stage: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `finish` wrote, None where that stage has not ended."""
        tensors, notes = self.path / f"stage-{stage}.safetensors", self.path / f"stage-{stage}.json"
        if not notes.exists():  # written last
            return None
        self.log_path(stage).unlink(missing_ok=True)
        return load_file(tensors), json.loads(notes.read_text())

    def finish(self, stage: int, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Write what the stage left behind; its log is needed no more."""
        replace_file(self.path / f"stage-{stage}.safetensors", lambda path: save_file(dict(tensors), path))
        replace_file(self.path / f"stage-{stage}.json", lambda path: path.write_text(json.dumps(notes)))
        self.log_path(stage).unlink(missing_ok=True)


def model_identity(model: Model) -> str:
    """A hash of equations, settings and numbers of a model, and of the user's own code in it with all that this reads.

    Code that cannot be told from other code in another process (see `ude.compile.fingerprint`) counts by its
    name.
    """
    code = hashlib.sha256(json.dumps(model.to_dict(), sort_keys=True).encode())
    own: list[Any] = [model.function] if isinstance(model, FunctionModel) else []
    own += [term.module for term in model.terms.values() if isinstance(term, Neural) and not isinstance(term, MLP)]
    for part in own:
        found = fingerprint(part)
        if found.stable is not None:
            code.update(found.stable.encode() + found.values())
    for name, value in model.state_dict().items():
        code.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return code.hexdigest()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename: an interruption leaves the old file or the new one, never half of either."""
    beside = path.with_name(f".{path.name}.tmp")
    write(beside)
    os.replace(beside, path)
