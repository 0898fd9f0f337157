"""What the guidance changed over several seeds of one prompt, by judge and axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from nrg_sampler.statistics import t_interval

Changes = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class AxisChange:
    """The change of one axis, guided minus unguided at the same seed.

    Args:
        mean: Over the seeds.
        low: Lower end of the 95 % t-interval of the mean; ``None`` for a single seed.
        high: Upper end.
        rose: How many seeds rose.
        seeds: How many there are.
    """

    mean: float
    low: float | None
    high: float | None
    rose: int
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> AxisChange:
        """Summarise the changes of some seeds."""
        low, high = t_interval(values) or (None, None)
        return cls(fmean(values), low, high, sum(value > 0 for value in values), len(values))

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return _signed(self.mean)
        interval = f"[{_signed(self.low)}, {_signed(self.high)}]"
        return f"{_signed(self.mean)} {interval} ({self.rose} of {self.seeds} rose)"


def summarise_changes(changes: Sequence[Changes]) -> dict[str, dict[str, AxisChange]]:
    """Summarise the changes of some seeds by judge and axis; a seed without a score of an axis does not count there.

    Args:
        changes: Of each seed, see :func:`nrg_sampler.runs.manifest.changes`.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for change in changes:
        for judge, axes in change.items():
            for axis, value in axes.items():
                values.setdefault(judge, {}).setdefault(axis, []).append(value)
    return {judge: {axis: AxisChange.of(some) for axis, some in axes.items()} for judge, axes in values.items()}


def mean_changes(summary: Mapping[str, Mapping[str, AxisChange]]) -> dict[str, dict[str, float]]:
    """Return the means alone."""
    return {judge: {axis: change.mean for axis, change in axes.items()} for judge, axes in summary.items()}


def format_summary(axes: Mapping[str, AxisChange]) -> str:
    """Return one line such as ``VQ +0.031 [-0.012, +0.074] (3 of 4 rose) · MQ +0.052 [+0.020, +0.084] (4 of 4)``."""
    return " · ".join(f"{axis} {change}" for axis, change in axes.items())


def summary_entries(summary: Mapping[str, Mapping[str, AxisChange]]) -> dict[str, dict[str, Any]]:
    """Return the summary as plain JSON values."""
    return {
        judge: {axis: _rounded(asdict(change)) for axis, change in axes.items()} for judge, axes in summary.items()
    }


def _rounded(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in entries.items()}


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # + 0.0: never -0.000
