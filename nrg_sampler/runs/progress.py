"""A long run as an iterator over its progress, with a result at the end: the caller decides what to show."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")


class RunFailedError(Exception):
    """A run that stopped though nothing is wrong with its input: such as by a loss that is not finite."""


@dataclass(frozen=True)
class Progress:
    """How far a part of a run is.

    Args:
        work: The part, such as ``"encoding"``.
        done: How much of it is done.
        total: How much there is, if that is known.
        unit: What is counted.
        numbers: Measured so far, such as the loss of a training step.
        notes: Sentences for the user, such as which rows of a file are left out.
    """

    work: str
    done: int
    total: int | None = None
    unit: str = "step"
    numbers: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Run(Iterator[Progress], Generic[Result]):
    """Iterate over the progress of a run; its result is there at the end.

    Args:
        steps: The work, as a generator that yields progress and returns the result.
        is_main_process: False in all but the first process of a distributed run, which show and print nothing.

    Example:
        >>> run = train_reward(settings)
        >>> for progress in run:
        ...     print(progress.work, progress.done)
        >>> run.result
    """

    def __init__(self, steps: Generator[Progress, None, Result], is_main_process: bool = True) -> None:
        """Start nothing yet: the work begins with the first step."""
        self.is_main_process = is_main_process
        self._steps = steps
        self._results: list[Result] = []  # one at the end, which may be None

    def __next__(self) -> Progress:
        """Do the next part of the work."""
        try:
            return next(self._steps)
        except StopIteration as end:
            if not self._results:
                self._results.append(end.value)
            raise

    def finish(self) -> Result:
        """Do all that is left, without looking at the progress, and return the result."""
        for _ in self:
            pass
        return self.result

    def close(self) -> None:
        """Stop the run where it is, as closing a generator does."""
        self._steps.close()

    @property
    def result(self) -> Result:
        """What the run returned.

        Raises:
            RuntimeError: If it has not ended yet.
        """
        if not self._results:
            raise RuntimeError("Expected a run that has ended, but there is work left; call `finish()`.")
        return self._results[0]
