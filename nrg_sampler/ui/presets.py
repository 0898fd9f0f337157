"""Weights by name: plain words first, then the rows of the paper's table."""

from __future__ import annotations

from collections.abc import Sequence

CUSTOM = "Custom"
AUTO = "Auto: proposed for this prompt"
PRESETS: dict[str, tuple[float, float, float]] = {
    "Balanced": (1.0, 1.0, 1.0),
    "Sharper picture": (1.0, 0.0, 0.0),
    "Smoother motion": (0.0, 1.0, 0.0),
    "Follow the prompt": (0.0, 0.0, 1.0),
    "Paper 0 : 0 : 1": (0.0, 0.0, 1.0),
    "Paper 0.1 : 0.1 : 0.8": (0.1, 0.1, 0.8),
    "Paper 0.1 : 0.1 : 0.6": (0.1, 0.1, 0.6),
    "Paper 0.5 : 0.5 : 0": (0.5, 0.5, 0.0),
}
AXIS_NAMES = {
    "VQ": ("Visual quality", "Clean edges, steady colours, a calm background."),
    "MQ": ("Motion quality", "A smooth path without jumps or flicker."),
    "TA": ("Text alignment", "Shows what the prompt asks for."),
}
EXAMPLES = (
    "a red circle moving right",
    "a green star moving up",
    "a large blue ring growing",
    "a pink square falling",
    "a purple triangle swaying from side to side",
)


def preset_of(weights: Sequence[float]) -> str:
    """Return the first preset with these weights, or :data:`CUSTOM`."""
    return next((name for name, values in PRESETS.items() if tuple(weights) == values), CUSTOM)
