"""Exchange the step of one scheduler for the duration of a ``with`` block, one block within another."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BESIDE = "_goes_beside_others"  # of a step that lets others be exchanged around it


@contextmanager
def replaced_step(scheduler: Any, step_of: Callable[[Any], Any], beside: bool = False) -> Iterator[None]:
    """Let ``scheduler`` step by another function.

    Args:
        scheduler: The one scheduler; others of its class step as before.
        step_of: Returns the function, given the one before it; both take the scheduler first.
        beside: Whether guidance may be attached inside the block.
    """
    before = vars(scheduler).get("step")
    step = step_of(type(scheduler).step if before is None else before.__func__)
    setattr(step, BESIDE, beside and not others_step(scheduler))
    # A bound method rather than a closure: deepcopy binds it to the copy, which would otherwise step this scheduler.
    scheduler.step = types.MethodType(step, scheduler)
    try:
        yield
    finally:
        del scheduler.step
        if before is not None:
            scheduler.step = before


def others_step(scheduler: Any) -> bool:
    """Return whether the scheduler steps by a function that nothing may be attached around."""
    step = vars(scheduler).get("step")
    return step is not None and not getattr(step, BESIDE, False)
