"""Settings by name: weights in plain words and in the rows of the paper's table; when the reward is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nrg_sampler.guidance import presets
from nrg_sampler.ui.controls import FRACTION_STEP

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
GUIDANCE_PRESETS: dict[str, dict[str, Any]] = {
    f"{name.capitalize()}: {presets.ABOUT[name]}": settings for name, settings in presets.PRESETS.items()
}
PRESET_SETTINGS = tuple(presets.PRESETS[presets.DEFAULT])
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
    return next((name for name, values in PRESETS.items() if tuple(weights[: len(values)]) == values), CUSTOM)


def guidance_preset_of(settings: Mapping[str, Any]) -> str:
    """Return the preset of the guidance with these settings, or :data:`CUSTOM`; a slider may round a fraction."""
    for name, preset in GUIDANCE_PRESETS.items():
        if all(abs(settings[key] - value) < FRACTION_STEP / 2 for key, value in preset.items()):
            return name
    return CUSTOM
