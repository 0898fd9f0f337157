"""A CSV file that an interrupted run can go on with."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from nrg_sampler.entries import shown
from nrg_sampler.files import replacing
from nrg_sampler.json_text import read_object, to_json

Parsed = TypeVar("Parsed")


def read_rows(file: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows that have a value in every required column; an incomplete last line is ignored.

    Raises:
        ValueError: If the file is no CSV file, or a row has more cells than the header.
    """
    if not file.exists():
        return []
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            whole = [line for line in stream if line.endswith("\n")]
        rows = list(csv.DictReader(whole))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(file, str(error)) from error
    if any(None in row for row in rows):
        raise _damaged(file, "a row has more cells than the header")
    return [row for row in rows if all(row.get(name) for name in required)]


def parse_rows(file: Path, rows: Iterable[dict[str, str]], parse: Callable[[dict[str, str]], Parsed]) -> list[Parsed]:
    """Turn rows of a file into what they stand for.

    Raises:
        ValueError: If one cannot be, with the file and the row.
    """
    parsed = []
    for row in rows:
        try:
            parsed.append(parse(row))
        except (ValueError, KeyError) as error:
            raise _damaged(file, f"{error} in the row {shown(','.join(row.values()))}") from error
    return parsed


def _damaged(file: Path, reason: str) -> ValueError:
    return ValueError(
        f"Expected the table that an evaluation wrote in {file}, but it cannot be read: {reason}; put it back, or "
        "name another folder as `out`."
    )


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV file, whole or not at all; what a row has no value for stays empty."""
    with replacing(file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = _writer(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def _writer(stream: Any, columns: Sequence[str]) -> csv.DictWriter[str]:
    return csv.DictWriter(stream, columns, extrasaction="ignore", restval="")


class ResumableTable:
    """Append rows to a CSV file that may hold some already.

    Args:
        file: The file; an interrupted run may have left half a line at its end, so the whole ones are written anew.
        columns: All columns, in order; others that the file has already are kept.
        required: Those without which a row counts as missing.
    """

    def __init__(self, file: Path, columns: Sequence[str], required: Sequence[str]) -> None:
        self.file = file
        self.rows: list[dict[str, Any]] = [dict(row) for row in read_rows(file, required)]
        self.columns = tuple(dict.fromkeys((*columns, *(name for row in self.rows[:1] for name in row))))
        write_rows(file, self.columns, self.rows)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows to the end of the file, at once."""
        with open(self.file, "a", newline="", encoding="utf-8") as stream:
            _writer(stream, self.columns).writerows(rows)


def require_same_settings(file: Path, settings: Mapping[str, Any], table: Path) -> None:
    """Refuse to go on with a table whose clips were sampled or graded otherwise, and write down how they are.

    Args:
        file: JSON beside the table; other entries that it has already are kept.
        settings: What all clips of the table have in common.
        table: The table, which may not be there yet.

    Raises:
        ValueError: If they were, or nothing says how they were.
    """
    before = _settings_in(file)
    if before is None and read_rows(table, ()):
        raise ValueError(
            f"Expected the settings of the clips of {table} in {file.name} beside it, but it is missing or damaged; "
            "put it back, or name another folder as `out`."
        )
    before = before or {}
    differing = [name for name, value in settings.items() if name in before and before[name] != value]
    if differing:
        raise ValueError(
            f"Expected clips sampled with {', '.join(f'{name} {before[name]}' for name in differing)}, as those in "
            f"{file.parent}, but got {', '.join(f'{name} {settings[name]}' for name in differing)}; "
            "name another folder as `out`."
        )
    with replacing(file) as partial:
        partial.write_text(to_json({**before, **settings}, indent=2) + "\n", encoding="utf-8")


def _settings_in(file: Path) -> dict[str, Any] | None:
    """Read the settings of a table; ``None`` if they are missing or damaged."""
    try:
        return read_object(file, "remove it")
    except (FileNotFoundError, ValueError):
        return None
