"""What is stated once of a setting: its range, its group, what it does and how it is shown.

:class:`nrg_sampler.guidance.settings.RewardGuidance` states it as the metadata of its fields. Its own checks, the
options of the command line, the controls of the page and the settings of ``evaluate --arms`` are made from that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias, TypeVar

from nrg_sampler.entries import shown

T = TypeVar("T")
NONE = "none"  # how text says None
EXPERIMENTAL = "experimental"
GROUPS = {
    "strength": "how strongly the reward guides",
    "when": "in which steps",
    "limits": "how far it may push",
    "reading": "what of the latents it reads",
    EXPERIMENTAL: "gained nothing with any reward that ships",
}


@dataclass(frozen=True)
class Number:
    """A number.

    Args:
        low: Smallest value.
        high: Largest value.
        above: Whether it has to be above ``low``.
        none: What ``None`` means, if it may be that; infinity then means the same.
        slider: Lowest and highest value on the page and the distance between two; the range by default.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    none: str | None = None
    slider: tuple[float, float, float] | None = None

    @property
    def metavar(self) -> str:
        """What stands for the value in a command line, F for a fraction."""
        return "F" if self.high == 1 else "X"

    @property
    def expected(self) -> str:
        """The range in words."""
        if self.low == -math.inf:
            text = "a finite number"
        elif self.high < math.inf:
            low, high = f"{self.low:g}", f"{self.high:g}"
            text = f"above {low} and at most {high}" if self.above else f"between {low} and {high}"
        else:
            text = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        return text if self.none is None else f"{text}, or None for {self.none}"

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as it is stored.

        Raises:
            ValueError: If it is out of range.
        """
        if self.none is not None and value in (None, math.inf):
            return None
        try:
            holds = math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)
        except (TypeError, OverflowError):
            holds = False
        expect(holds, name, self.expected, value)
        return value

    def read(self, name: str, text: str) -> float | None:
        """Return the number that a text holds.

        Raises:
            ValueError: If it holds none.
        """
        if self.none is not None and text.lower() == NONE:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"Expected a number for `{name}`, but got {text!r}.")
        return value


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Args:
        low: Smallest value.
        slider: Lowest and highest value on the page.
    """

    low: int = 1
    slider: tuple[int, int] = (1, 10)
    metavar = "N"

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as it is stored.

        Raises:
            ValueError: If it is out of range or not whole.
        """
        expect(isinstance(value, int) and value >= self.low, name, f"a whole number of {self.low} or more", value)
        return value

    def read(self, name: str, text: str) -> int:
        """Return the whole number that a text holds.

        Raises:
            ValueError: If it holds none.
        """
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"Expected a whole number for `{name}`, but got {text!r}.") from None


@dataclass(frozen=True)
class Switch:
    """Yes or no."""

    metavar = None

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as it is stored.

        Raises:
            ValueError: If it is neither true nor false.
        """
        expect(isinstance(value, bool), name, "True or False", repr(value))
        return value

    def read(self, name: str, text: str) -> bool:
        """Return what a text says.

        Raises:
            ValueError: If it is neither true nor false.
        """
        if text.lower() not in ("true", "false"):
            raise ValueError(f"Expected true or false for `{name}`, but got {text!r}.")
        return text.lower() == "true"


@dataclass(frozen=True)
class Choice:
    """One of several words.

    Args:
        options: The words.
    """

    options: tuple[str, ...]

    @property
    def metavar(self) -> str:
        """What stands for the value in a command line."""
        return f"{{{','.join(self.options)}}}"

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as it is stored.

        Raises:
            ValueError: If it is none of the words.
        """
        expect(value in self.options, name, " or ".join(map(repr, self.options)), repr(value))
        return value

    def read(self, name: str, text: str) -> str:
        """Return the text, which ``checked`` looks up."""
        return text


@dataclass(frozen=True)
class Text:
    """Something that is written as text, such as weights.

    Args:
        metavar: What stands for it in a command line.
        none: What ``None`` means.
        convert: Returns what is stored for a name and a value, or raises ``ValueError``.
    """

    metavar: str
    none: str
    convert: Callable[[str, Any], Any]

    def checked(self, name: str, value: Any) -> Any:
        """Return the value as it is stored.

        Raises:
            ValueError: If it does not parse.
        """
        return self.convert(name, value)

    def read(self, name: str, text: str) -> str | None:
        """Return the text, which ``checked`` parses."""
        return None if text.lower() == NONE else text


Kind: TypeAlias = Number | Whole | Switch | Choice | Text


@dataclass(frozen=True)
class Setting:
    """All that is known about a field.

    Args:
        name: Of the field.
        default: Its default.
        kind: Which values it takes.
        group: What it belongs to, one of ``GROUPS``.
        help: What it does, in a line that a command line and a page can show.
        label: Its name among the further settings of the page; empty if it is not one of them.
        shown: Whether ``--help`` shows it.
        option: Of the command line, without the hyphens before it.
    """

    name: str
    default: Any
    kind: Kind
    group: str
    help: str
    label: str
    shown: bool
    option: str

    @property
    def experimental(self) -> bool:
        """Whether it gained nothing with any reward that ships."""
        return self.group == EXPERIMENTAL

    @property
    def usual(self) -> str:
        """The default in words."""
        if self.default is None and isinstance(self.kind, (Number, Text)):
            return str(self.kind.none)
        if isinstance(self.kind, Switch):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.kind, Number) else str(self.default)

    def checked(self, value: Any) -> Any:
        """Return a value as it is stored.

        Raises:
            ValueError: If it is out of range.
        """
        return self.kind.checked(self.name, value)

    def read(self, text: str) -> Any:
        """Return the value that a text says, as it is stored; ``"none"`` is ``None`` where that is allowed.

        Raises:
            ValueError: If it does not parse or is out of range.
        """
        return self.checked(self.kind.read(self.name, text))


def setting(
    default: T, kind: Kind, group: str, help: str, *, label: str = "", shown: bool = False, option: str = ""
) -> T:
    """Declare a field of a dataclass; arguments as those of :class:`Setting`, the option by default its name."""
    about = {"kind": kind, "group": group, "help": help, "label": label, "shown": shown, "option": option}
    return field(default=default, metadata=about)


def settings_of(kind: Any) -> dict[str, Setting]:
    """Return what is stated of the fields of a dataclass, by their names in their order."""
    return {
        item.name: Setting(
            item.name,
            item.default,
            **{**item.metadata, "option": item.metadata["option"] or item.name.replace("_", "-")},
        )
        for item in fields(kind)
    }


def expect(holds: bool, name: str, expected: str, got: Any) -> None:
    """Refuse a value of a setting.

    Raises:
        ValueError: If ``holds`` is false.
    """
    if not holds:
        raise ValueError(f"Expected `{name}` to be {expected}, but got {shown(got, str)}.")
