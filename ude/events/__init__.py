"""Events: legs of a solve between them, tied together so that gradients run through."""

from ude.events.outcome import EventSolve
from ude.events.run import EventRun, preset_times
from ude.events.segments import solve_with_events

__all__ = ["EventRun", "EventSolve", "preset_times", "solve_with_events"]
