"""What an entry of a settings file may be, so that one that somebody edited is refused in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SHOWN_LENGTH = 60  # characters of a value in an error
SEEDS = 2**63  # what torch and numpy both take


class Kind(NamedTuple):
    """One kind of entry.

    Args:
        expected: What it is, in words.
        holds: Whether a value is one.
    """

    expected: str
    holds: Callable[[Any], bool]

    def or_none(self) -> Kind:
        """Return the kind that may be missing as well."""
        return Kind(f"{self.expected} or null", lambda value: value is None or self.holds(value))

    def mapped(self) -> Kind:
        """Return an object whose values are of this kind."""
        return Kind(
            f"an object, each value of it {self.expected}",
            lambda value: isinstance(value, dict) and all(map(self.holds, value.values())),
        )

    def listed(self) -> Kind:
        """Return a list of this kind."""
        return Kind(
            f"a list, each item of it {self.expected}",
            lambda value: isinstance(value, (list, tuple)) and all(map(self.holds, value)),
        )


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    if isinstance(value, int):
        return is_whole(value) and abs(value) < 2**1023
    return isinstance(value, float) and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Return whether a value is a text that UTF-8 can hold; an argument in another encoding has lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_plain(value: Any) -> bool:
    """Return whether a value is what JSON can hold, with finite numbers."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (str, bool)) or is_number(value)


TEXT = Kind("a text", is_text)
UNICODE = Kind("a text that UTF-8 can hold", is_text)  # where only that can be wrong
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
NUMBER = Kind("a finite number", is_number)
POSITIVE = Kind("a number above 0", lambda value: is_number(value) and value > 0)
COUNT = Kind("a whole number of 1 or more", lambda value: is_whole(value) and 1 <= value < SEEDS)
SEED = Kind("a whole number of 0 or more, below 2^63", lambda value: is_whole(value) and 0 <= value < SEEDS)
PLAIN = Kind("plain JSON with finite numbers", is_plain)


def one_of(*words: str) -> Kind:
    """Return the kind that is one of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def require(entries: Mapping[str, Any], kinds: Mapping[str, Kind], where: str = "") -> None:
    """Refuse an entry of another kind; entries that are missing or have no kind are passed over.

    Args:
        entries: By name.
        kinds: What some of them have to be.
        where: What they are entries of, for the error.

    Raises:
        ValueError: If one is not.
    """
    for name, kind in kinds.items():
        if name in entries and not kind.holds(entries[name]):
            raise ValueError(f"Expected `{name}`{where} to be {kind.expected}, but got {shown(entries[name])}.")


def shown(value: Any, write: Callable[[Any], str] = repr) -> str:
    """Write a value for an error, shortened."""
    try:
        text = write(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"
