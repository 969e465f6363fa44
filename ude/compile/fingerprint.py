"""Is this still the function that was traced?

A trace freezes everything that the Python of f reads: numbers in closures and globals, default arguments, attributes of
modules, lists and dicts, and the code itself. `fingerprint` collects all of it. Tensors are not frozen, a kernel reads
them through their pointers at every call, so of them only kind and shape count, and which is which.

What is read is found in the bytecode (reads.py). Functions and classes of torch, numpy, ude and the standard library
count by name and release; those of the user by their code, what that code reads, and so on (walk.py). Of classes only
members count whose names occur in code that was reached: a method that nothing calls may do what it likes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ude.compile.environment import release
from ude.compile.value_kinds import Refused, Same
from ude.compile.walk import Walk


class Fingerprint:
    """What a trace of f depends on.

    Args:
        key: Hashable; equal keys mean that a trace of the one serves the other, with its own `tensors`.
        tensors: The captured tensors, in an order that the key fixes. A captured tensor that is replaced by another of
            its kind and shape leaves the key as it is and stands here in its place. Leaves of the problem are not
            among them.
        why_not: One sentence that says why no trace of f may be kept, or None. With a reason, the key says nothing.

    What f changes while it runs (a counter, a list of calls) shows as a different key before and after tracing: such a
    function must not be replaced by a kernel, which would not make the change.
    """

    __slots__ = ("_digest", "_roots", "key", "tensors", "why_not")

    def __init__(self, key: tuple[Any, ...], tensors: tuple[Tensor, ...], why_not: str | None, roots: set[str]) -> None:
        self.key, self.tensors, self.why_not, self._roots = key, tensors, why_not, roots
        self._digest: tuple[str | None] | None = None

    @property
    def stable(self) -> str | None:
        """sha256 in hex that is the same in another process for the same code, values and releases of packages.

        None where an object counts by its identity only, or where `why_not` is given.
        """
        if self._digest is None:
            self._digest = (None if self.why_not is not None else _digest(self.key, self._roots),)
        return self._digest[0]

    def values(self) -> bytes:
        """sha256 of the numbers in `tensors`, for a trace that turned some of them into Python numbers."""
        hashed = hashlib.sha256()
        for tensor in self.tensors:
            hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return hashed.digest()


def fingerprint(f: Any, extra: Iterable[Any] = (), known: Sequence[Tensor] = ()) -> Fingerprint:
    """Collect what a trace of f would freeze.

    Nothing is raised: what cannot be told apart safely is said by `Fingerprint.why_not`.

    Args:
        f: A function, method, callable object, `nn.Module`, or a `FlatRightHandSide`, whose leaves are known of
            themselves.
        extra: Further values that the trace depends on.
        known: Tensors that are leaves of the problem; they count by their place here and are not in `tensors`.
    """
    walk = Walk(known)
    why_not = None
    try:
        walk.surroundings()
        walk.value(f)
        for item in extra:
            walk.value(item)
        walk.members()
    except Refused as refusal:
        why_not = str(refusal)
    except RecursionError:
        why_not = "f reaches objects that are nested too deeply to be looked at."
    except Exception as error:  # whatever the attributes of the user's own objects raise when they are read
        why_not = f"f reaches an object that cannot be looked at ({type(error).__name__}: {error})."
    return Fingerprint(tuple(walk.tokens), tuple(walk.tensors), why_not, walk.roots)


def _digest(key: tuple[Any, ...], roots: set[str]) -> str | None:
    hashed = hashlib.sha256()
    for root in sorted(roots | {"python", "torch", "numpy", "ude"}):
        hashed.update(f"{root} {release(root)}\n".encode())
    for token in key:
        text = _written(token)
        if text is None:
            return None
        hashed.update(text)
    return hashed.hexdigest()


def _written(token: Any) -> bytes | None:
    """A token as bytes that mean the same in every process; None where there is no such thing."""
    if type(token) is Same:
        return None
    if isinstance(token, tuple):
        parts = [_written(item) for item in token]
        return b"(" + b"".join(part for part in parts if part is not None) + b")" if None not in parts else None
    if isinstance(token, type):
        return f"type {token.__module__}.{token.__qualname__};".encode()
    if isinstance(token, bytes):
        return b"bytes %d " % len(token) + token
    return f"{type(token).__name__} {token!r};".encode()
