"""The tree of errors and their one message template.

Every error that a user can cause says what is wrong, what was expected, what was
got and how to fix it, in one sentence or two::

    saveat must increase: saveat[3]=0.5 follows saveat[2]=0.7. Sort it, or swap tspan to integrate backwards.

Failure at run time (a solve that stiffens, a trajectory that blows up) is data, a
`ReturnCode`, and becomes `SolveFailed` only when somebody asks for the values.
"""

from __future__ import annotations


def message(what: str, *, expected: str = "", got: str = "", fix: str = "") -> str:
    """Compose the one message template: ``what: expected E, got G. Fix.``"""
    middle = ", ".join(part for part in (f"expected {expected}" if expected else "", _got(expected, got)) if part)
    text = f"{what}: {middle}." if middle else f"{what}."
    return f"{text} {fix}" if fix else text


def _got(expected: str, got: str) -> str:
    return f"got {got}" if expected and got else got


class UdeError(Exception):
    """Base of every error raised by `ude`. `str(error)` is the whole message.

    >>> try:
    ...     ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, float("nan")))
    ... except ude.UdeError as error:
    ...     print(type(error).__name__)
    InputError
    """

    def __init__(self, what: str, *, expected: str = "", got: str = "", fix: str = "") -> None:
        self.what, self.expected, self.got, self.fix = what, expected, got, fix
        super().__init__(message(what, expected=expected, got=got, fix=fix))

    def __str__(self) -> str:
        return str(self.args[0])


class InputError(UdeError, ValueError):
    """An argument breaks a rule: a wrong shape, name, order, range or file.

    >>> issubclass(ude.errors.InputError, ValueError)
    True
    """


def invalid_field(owner: object, name: str, rule: str) -> InputError:
    """The error for a field of an options object: ``NAME of CLASS must be RULE: got ITS VALUE.``"""
    return InputError(f"{name} of {type(owner).__name__} must be {rule}", got=repr(getattr(owner, name)))


class UnknownName(InputError, AttributeError, KeyError):
    """A name that does not exist; says what it is called here.

    >>> ude.QNDF
    Traceback (most recent call last):
    ude.errors.UnknownName: module 'ude' has no attribute 'QNDF': expected ude.FBDF(), a stiff multistep ...
    """

    def __str__(self) -> str:
        return UdeError.__str__(self)  # that of KeyError puts quotes around it


class DataError(InputError):
    """The measurements break a rule: a missing column, text in a number column, unsorted times.

    >>> ude.Dataset.from_arrays([0.0, 1.0, 0.5], [1.0, 2.0, 3.0], "x")
    Traceback (most recent call last):
    ude.errors.DataError: times must increase: ...
    """


class ModelError(InputError):
    """The equations break a rule. Carries the source text and the place, and draws a caret under it.

    >>> ude.UDE("dx/dt = a*(x", fit="a")
    Traceback (most recent call last):
    ude.errors.ModelError: the formula does not parse: this '(' is never closed.
        dx/dt = a*(x
                  ^
    """

    def __init__(
        self,
        what: str,
        *,
        source: str = "",
        position: int | None = None,
        length: int = 1,
        expected: str = "",
        got: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(what, expected=expected, got=got, fix=fix)
        self.source, self.position, self.length = source, position, length

    def __str__(self) -> str:
        text = super().__str__()
        if not self.source or self.position is None:
            return text
        return f"{text}\n    {self.source}\n    {' ' * self.position}{'^' * max(1, self.length)}"


class SolveFailed(UdeError, RuntimeError):
    """The values of a failed solution were asked for; says which trajectories, when, and what to try.

    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: u**2, [1.0], (0.0, 2.0)), ude.Tsit5())
    >>> sol.u
    Traceback (most recent call last):
    ude.errors.SolveFailed: the solve failed with DtLessThanMin at t=0.99998...
    """


class EngineRefused(UdeError, RuntimeError):
    """The engine that was asked for by name cannot run this problem; the message is its `why_not`.

    >>> prob = ude.ODEProblem(lambda u, p, t: u if u[0] > 0 else -u, [1.0], (0.0, 1.0))
    >>> ude.solve(prob, ude.Tsit5(), engine="fused")
    Traceback (most recent call last):
    ude.errors.EngineRefused: the engine 'fused' cannot run this solve: fused: f decides by the value of a tensor ...
    """


class BackendMissing(UdeError, ImportError):
    """An optional back end (Operon, PySR with Julia, a C compiler) is absent; says how to install it.

    >>> issubclass(ude.errors.BackendMissing, ImportError)
    True
    """


class GradientWarning(UserWarning):
    """The right-hand side itself cuts a derivative, by ``.detach()`` or ``torch.no_grad()``: it may be meant so.

    >>> import warnings
    >>> k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k.detach() * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     sol = ude.solve(prob, ude.Tsit5())
    >>> str(caught[0].message)
    'the gradient does not pass .detach() in f, so what depends on p.k by that way counts as a constant...'
    """
