"""Times at which a solve saves, as a row for each trajectory."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ude.errors import InputError
from ude.events.times import regular_times, require_inside, time_rows


def as_times(value: Any, rule: str) -> Tensor:
    """Times as a tensor.

    Raises:
        InputError: They are no numbers; the message is the rule.
    """
    try:
        times = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(rule, got=repr(value)) from None
    if times.is_complex():
        raise InputError(rule, got=str(times.dtype))
    return times


def save_times(saveat: Any, t0: Tensor, t1: Tensor, batch: tuple[int, ...]) -> Float[Tensor, "B T"] | None:
    """Check `saveat` of a solve from t0 to t1 (B,), and give every trajectory its row.

    Raises:
        InputError: It is no positive number and no times that run with the solve, inside its span.
    """
    if saveat is None:
        return None
    if not isinstance(saveat, Tensor):
        return _checked_times(saveat, t0, t1, batch)
    # in a fit the same times come again and again, and they have been checked
    known = _KNOWN_TIMES.get(saveat)
    asked = (saveat._version, batch, t0.dtype, t0.data_ptr(), t1.data_ptr(), t0._version, t1._version)
    if known is None or known[0] != asked:
        # t0 and t1 are kept alive, so that no other tensors can get their addresses
        known = _KNOWN_TIMES[saveat] = (asked, _checked_times(saveat, t0, t1, batch), t0, t1)
    result: Tensor | None = known[1]
    return result


# keyed by the identity of the tensor that the user gave
_KNOWN_TIMES: Any = WeakIdKeyDictionary()


_TIMES = "saveat must be a positive number or a list of times"
# More would fill the memory with points that the dense output gives at any time: 80 MB for each state.
_MOST_TIMES = 10_000_000


def _checked_times(saveat: Any, t0: Tensor, t1: Tensor, batch: tuple[int, ...]) -> Float[Tensor, "B T"]:
    if isinstance(saveat, bool):
        raise InputError(_TIMES, got=repr(saveat), fix="Leave it out to save every step.")
    times = as_times(saveat, _TIMES).to(t0).detach()
    if times.ndim == 0:
        return _regular_times(float(times), t0, t1)
    rows = time_rows("saveat", times, t0, batch)
    if rows.shape[-1] == 0:
        raise InputError("saveat must have at least one time", got="none", fix="Leave it out to save every step.")
    if not bool(torch.isfinite(rows).all()):
        raise InputError("saveat must be finite", got="NaN or infinity among the times")
    sign = torch.where(t1 >= t0, 1.0, -1.0).to(rows.dtype).unsqueeze(-1)
    wrong = ((rows[:, 1:] - rows[:, :-1]) * sign < 0).nonzero()
    if len(wrong):
        row, i = (int(x) for x in wrong[0])
        word = "increase" if float(sign[row]) > 0 else "decrease"
        before, after = float(rows[row, i]), float(rows[row, i + 1])
        raise InputError(
            f"saveat must {word}",
            got=f"saveat[{i + 1}]={after:g} follows saveat[{i}]={before:g}",
            fix="Sort it, or swap tspan to integrate backwards.",
        )
    require_inside("saveat", rows, t0, t1)
    return rows.contiguous()


def _regular_times(every: float, t0: Tensor, t1: Tensor) -> Float[Tensor, "B T"]:
    if not 0 < every < float("inf"):
        raise InputError(_TIMES, got=repr(every))
    span = t1 - t0
    if float(span.abs().max()) / _MOST_TIMES > every:
        raise InputError(
            f"saveat as a number must make at most {_MOST_TIMES:,} times",
            got=f"saveat={every:g} over a span of {float(span.abs().max()):g}",
            fix="Save fewer, and read sol(t), the dense output, at any time between.",
        )
    if bool((span != span[0]).any()):
        raise InputError(
            "with saveat as a number all spans must have the same length",
            got="spans of different lengths",
            fix="Give saveat as times of shape (*batch, time).",
        )
    times = regular_times(every, t0, t1)
    return times[:, torch.isfinite(times[0])]
