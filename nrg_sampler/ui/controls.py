"""The settings of the guidance as the page shows and reads them, by the names of the fields of ``RewardGuidance``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nrg_sampler.guidance import fields
from nrg_sampler.guidance.fields import GROUPS, Setting, settings_of
from nrg_sampler.guidance.settings import RewardGuidance

TEXT_LENGTH = 100  # characters
FRACTION_STEP = 0.05  # of a slider
FLOORS = ("TA", "VQ", "MQ", "VQ,TA", "MQ,TA", "VQ,MQ")


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

# What the page offers as a menu, although any text would do: all but the names of the axes
MENUS = {"floor": {"none": None, **{text: tuple(text.split(",")) for text in FLOORS}}}


def controls_of(kind: type[RewardGuidance]) -> dict[str, Control]:
    """Return a control for each setting that the page shows among its further ones, by its name."""
    return {name: _control(setting) for name, setting in settings_of(kind).items() if setting.label}


def _control(setting: Setting) -> Control:
    label, info, kind = setting.label, f"{setting.help[0].upper()}{setting.help[1:]}.", setting.kind
    if setting.name in MENUS:
        return Choice(label, info, MENUS[setting.name])
    if isinstance(kind, fields.Number):
        low, high, step = kind.slider or (kind.low, kind.high, FRACTION_STEP)
        return Number(label, info, low, high, step, optional=kind.none is not None)
    if isinstance(kind, fields.Whole):
        return Number(label, info, *kind.slider, 1)
    if isinstance(kind, fields.Choice):
        return Choice(label, info, {option: option for option in kind.options})
    return Switch(label, info) if isinstance(kind, fields.Switch) else Text(label, info)


CONTROLS = controls_of(RewardGuidance)
# The same by what the page says above each group
GROUPED = {
    f"{group.capitalize()}: {about}.": [
        (name, CONTROLS[name])
        for name, setting in settings_of(RewardGuidance).items()
        if setting.group == group and name in CONTROLS
    ]
    for group, about in GROUPS.items()
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
