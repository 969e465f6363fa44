"""Events: callbacks, the segments of a solve between events, and what is saved of them."""

from ude.events.outcome import EventSolve
from ude.events.run import EventRun, preset_times
from ude.events.segments import solve_with_events

__all__ = ["EventRun", "EventSolve", "preset_times", "solve_with_events"]
