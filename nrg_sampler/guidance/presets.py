"""When the reward is evaluated, by a name: trade-offs between what guidance gains and what it costs."""

from __future__ import annotations

from typing import Any

DEFAULT = "balanced"
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"start": 0.0, "stop": 1 / 3, "every": 2, "reuse": True},
    "balanced": {"start": 0.0, "stop": 1.0, "every": 2, "reuse": True},
    "best": {"start": 0.0, "stop": 1.0, "every": 1, "reuse": False},
}
ABOUT = {
    "fast": "in every second of the first third of the steps",
    "balanced": "in every second step",
    "best": "in every step",
}


def preset_named(name: str) -> dict[str, Any]:
    """Return the settings of a preset.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in PRESETS:
        raise ValueError(
            f"Expected a preset from {', '.join(map(repr, PRESETS))}, but got {name!r}; name one of them."
        )
    return PRESETS[name]
