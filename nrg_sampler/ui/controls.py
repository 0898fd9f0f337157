"""The settings of the guidance as the page shows and reads them, by the names of the fields of ``RewardGuidance``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nrg_sampler.guidance.settings import CONFLICTS, FORWARDS

TEXT_LENGTH = 100  # characters


@dataclass(frozen=True)
class Number:
    """A slider, or a field that may be left empty.

    Args:
        label: Its name on the page.
        info: One line about it.
        low: Smallest value.
        high: Largest value.
        step: Distance of the slider's stops; 1 makes it a whole number.
        optional: Whether an empty field means no limit.
    """

    label: str
    info: str
    low: float
    high: float
    step: float
    optional: bool = False

    def read(self, value: Any) -> Any:
        """Return the value of the field that somebody sent.

        Raises:
            ValueError: If it is not a number, not a whole one where it has to be, or out of range.
        """
        name = self.label.lower()
        if self.optional:  # a line of text on the page: a number field there shows nothing as 0
            value = _number(name, value)
            if value is None:
                return None
        number = whole(name, value) if self.step == 1 else real(name, value)
        return within(name, number, (self.low, self.high))

    def show(self, value: Any) -> Any:
        """Return what the page shows for a value of the field."""
        if self.optional:
            return "" if value is None else str(value)
        return value


@dataclass(frozen=True)
class Choice:
    """A menu.

    Args:
        label: Its name on the page.
        info: One line about it.
        options: Values of the field by their names in the menu.
    """

    label: str
    info: str
    options: Mapping[str, Any]

    def read(self, value: Any) -> Any:
        """Return the value of the field for a name in the menu, or for the value itself.

        Raises:
            ValueError: If the menu has neither.
        """
        if isinstance(value, str) and value in self.options:
            return self.options[value]
        if value not in self.options.values():
            raise ValueError(f"Expected {self.label.lower()} from {', '.join(self.options)}, but got {value!r}.")
        return value

    def show(self, value: Any) -> str:
        """Return the name of a value in the menu."""
        return next(name for name, option in self.options.items() if option == value)


@dataclass(frozen=True)
class Switch:
    """A box to tick.

    Args:
        label: Its name on the page.
        info: One line about it.
    """

    label: str
    info: str

    def read(self, value: Any) -> bool:
        """Return the value of the field that somebody sent.

        Raises:
            ValueError: If it is neither true nor false.
        """
        if not isinstance(value, bool):
            raise ValueError(f"Expected true or false for {self.label.lower()}, but got {value!r}.")
        return value

    def show(self, value: bool) -> bool:
        """Return what the page shows for a value of the field."""
        return value


@dataclass(frozen=True)
class Text:
    """A line of text that may be left empty.

    Args:
        label: Its name on the page.
        info: One line about it.
    """

    label: str
    info: str

    def read(self, value: Any) -> str | None:
        """Return the value of the field that somebody sent: text, a number or nothing.

        Raises:
            ValueError: If it is none of these, or long.
        """
        text = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
        if (value is not None and value != "" and not text) or len(text) > TEXT_LENGTH:
            raise ValueError(f"Expected a short text for {self.label.lower()}, but got {value!r:.60}.")
        return text or None

    def show(self, value: Any) -> str:
        """Return what the page shows for a value of the field."""
        return "" if value is None else str(value)


Control = Number | Choice | Switch | Text

FLOORS = {"none": None, **{text: tuple(text.split(",")) for text in ("TA", "VQ", "MQ", "VQ,TA", "MQ,TA", "VQ,MQ")}}

CONTROLS: dict[str, Control] = {
    "start": Number("Window start", "Guide from this fraction of the steps on.", 0.0, 1.0, 0.05),
    "stop": Number("Window stop", "Stop guiding at this fraction.", 0.0, 1.0, 0.05),
    "max_coefficient": Number("Clamp", "Limit of σ/(1-σ); empty for none.", 0.01, 1000.0, 0.1, optional=True),
    "max_push": Number("Cap", "Limit of the push, in velocities; empty for none.", 0.01, 10.0, 0.05, optional=True),
    "floor": Choice("Floor", "Axes that the push must not lower.", FLOORS),
    "conflicts": Choice("Conflicts", "When two axes pull apart: add them up, or project.", {c: c for c in CONFLICTS}),
    "damping": Text("Damping", "Trust in noise: power of 1-σ, as 1 or VQ=0,TA=1.5; empty as the reward recommends."),
    "fading": Text("Fading", "Trust near the end: power of σ, as 2 or VQ=4,TA=0; empty as the reward recommends."),
    "parallel": Number("Parallel share", "Of the push along the clip itself; less saturates less.", 0.0, 1.0, 0.05),
    "disagreement": Number("Disagreement", "Push less where the reward's members disagree.", 0.0, 3.0, 0.25),
    "every": Number("Every n-th step", "Ask the reward only each n-th step.", 1, 10, 1),
    "reuse": Switch("Reuse the direction", "Push with the last one in between."),
    "lookahead": Number(
        "Look ahead", "How far along its path a clip is read; 1 is the predicted end.", 0.0, 1.0, 0.05
    ),
    "smoothing": Number("Smoothing", "Share of the noise exchanged for an average.", 0.0, 1.0, 0.05),
    "smoothing_samples": Number("Samples of it", "Gradients in the average.", 1, 16, 1),
    "balanced": Switch("Balance the axes", "One norm for every axis' gradient."),
    "forward": Choice("Forward pass", "The reward's own, or the video model's features.", {f: f for f in FORWARDS}),
    "frame_stride": Number("Every n-th frame", "The reward reads only each n-th latent frame.", 1, 10, 1),
    "crop": Number("Crop", "Share of height and width that the reward reads.", 0.1, 1.0, 0.05),
    "calibrated": Switch("Calibrated", "Strength in units of the recommended one."),
}


def _number(name: str, value: Any) -> Any:
    """Return the number that a text holds, nothing for an empty one, and what is no text as it is."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"Expected a number for {name}, or nothing, but got {value!r:.60}.") from None


def real(name: str, value: Any) -> float:
    """Return a finite number that somebody sent.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"Expected a number for {name}, but got {value!r}.")
    return float(value)


def whole(name: str, value: Any) -> int:
    """Return a whole number that somebody sent; browsers send 25 as 25.0.

    Raises:
        ValueError: If it is none.
    """
    number = real(name, value)
    if not number.is_integer():
        raise ValueError(f"Expected a whole number for {name}, but got {value!r}.")
    return int(number)


def within(name: str, value: float, limits: tuple[float, float]) -> float:
    """Return ``value``.

    Raises:
        ValueError: If it is out of range.
    """
    low, high = limits
    if not low <= value <= high:
        raise ValueError(f"Expected {name} between {low:g} and {high:.10g}, but got {value:.10g}.")
    return value
