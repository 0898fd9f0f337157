"""The per-step curves as small SVG pictures: they scale with the page and follow its light and dark colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 250, 130
LEFT, RIGHT, TOP, BOTTOM = 40, 6, 8, 20
Series = Mapping[str, Sequence[float | None]]


def curves(trace: Sequence[Mapping[str, Any]]) -> str:
    """Draw what the guidance did: the reward per axis, the push and what the reward cost.

    Args:
        trace: Rows of ``GuidanceTrace``, one a step; empty for empty charts.
    """
    axes = next((list(row["reward"]) for row in trace if "reward" in row), [])
    rewards = {axis: [row["reward"][axis] if "reward" in row else None for row in trace] for axis in axes}
    charts = (
        chart("Reward", "raw, of the noisy clip", rewards),
        chart("Push", "% of the velocity", {"push": [_scaled(row, "push_ratio", 100) for row in trace]}, zero=True),
        chart(
            "Cost", "ms a step for the reward", {"cost": [_scaled(row, "seconds", 1000) for row in trace]}, zero=True
        ),
    )
    return f'<div class="nrg-curves">{"".join(charts)}</div>'


def chart(title: str, unit: str, series: Series, zero: bool = False) -> str:
    """Draw lines over the steps.

    Args:
        title: What it shows.
        unit: Of the values.
        series: Values by name, one a step; ``None`` leaves a gap.
        zero: Whether the scale begins at 0.
    """
    values = [value for line in series.values() for value in line if value is not None]
    low, high = _limits(values, zero)
    steps = max((len(line) for line in series.values()), default=0)

    def x(step: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step / (steps - 1) if steps > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick:.3g}</text>'
        for tick in (low, (low + high) / 2, high)
    ]
    for number, line in enumerate(series.values()):
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(line) if value is not None)
        parts.append(f'<polyline class="line line-{number}" points="{points}"/>')
    if steps:
        parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">step 1</text>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{steps}</text>')
    legend = (
        "".join(f'<i class="line-{n}">{escape(name)}</i>' for n, name in enumerate(series)) if len(series) > 1 else ""
    )
    head = f"<figcaption><b>{escape(title)}{legend}</b><span>{escape(unit)}</span></figcaption>"
    label = f"{title}, {unit}, over {steps} steps"
    return (
        f'<figure>{head}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _limits(values: Sequence[float], zero: bool) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    return (low, high) if high > low else (low, low + 1)


def _scaled(row: Mapping[str, Any], name: str, factor: float) -> float | None:
    value = row.get(name)
    return None if value is None else factor * value
