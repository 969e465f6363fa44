"""How the integration of a trajectory ended, and what to try when it failed."""

from __future__ import annotations

from enum import IntEnum


class ReturnCode(IntEnum):
    """How a trajectory's integration ended. Failure is data: nothing is raised until the values are asked for.

    >>> blow_up = ude.ODEProblem(lambda u, p, t: u**2, [1.0], (0.0, 2.0))
    >>> ude.solve(blow_up, ude.Tsit5()).retcode
    <ReturnCode.DtLessThanMin: 2>
    >>> ude.ReturnCode.Terminated.ok
    True
    """

    Success = 0
    MaxIters = 1
    DtLessThanMin = 2
    Unstable = 3
    Terminated = 4
    MaxEvents = 5
    ConvergenceFailure = 6
    InitialFailure = 7
    NotSteady = 8

    @property
    def ok(self) -> bool:
        """Whether the trajectory arrived where it should: at its end, or where a callback ended it."""
        return self in (ReturnCode.Success, ReturnCode.Terminated)

    def __str__(self) -> str:
        return self.name


#: What happened and what to try, for every way to fail.
ADVICE = {
    ReturnCode.MaxIters: (
        "it used all of its maxiters steps",
        "Raise maxiters, loosen reltol, or suspect a stiff problem.",
    ),
    ReturnCode.DtLessThanMin: (
        "its step fell below dtmin",
        "The solution may be singular or stiff there: check f, or loosen reltol and abstol.",
    ),
    ReturnCode.Unstable: (
        "f or the state became infinite or NaN however small the step",
        "The solution blows up or leaves the domain of f (a log or a root of a negative number?).",
    ),
    ReturnCode.ConvergenceFailure: (
        "Newton's iteration for the stages of an implicit step did not converge",
        "f may jump there: check f. With adaptive=False, take a smaller dt.",
    ),
    ReturnCode.NotSteady: (
        "no steady state was found",
        "Start nearer to it. DynamicSS() finds stable states only and may need a longer tspan; SSRootfind() needs a "
        "df/du that can be inverted.",
    ),
    ReturnCode.InitialFailure: (
        "no consistent initial state was found: the algebraic equations did not give the algebraic variables",
        "Give a u0 nearer to a consistent one. Where they cannot determine those variables, the index is above 1: "
        "differentiate the constraint in time.",
    ),
    ReturnCode.MaxEvents: (
        "more events happened than max_events",
        "Events may accumulate (a ball that comes to rest): end the trajectory with terminate, or raise max_events.",
    ),
}
