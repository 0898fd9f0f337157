"""Rows of a CSV file with a header: those that can be read without a doubt, and a reason for every other one.

The rules are those of RFC 4180, and spaces around cells are left out. Where a quote does not close, the next line is a
row again: a lone quote costs its own row, not those below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nrg_sampler.files import read_text

DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SEVERAL = 2  # commas in a cell with a line break: rather rows that a lone quote merged than a text
LINE_END = re.compile(r"\r\n|\r|\n")
SPACES = " \t"


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    row: int
    reason: str

    def __str__(self) -> str:
        """Return the row and the reason."""
        return f"row {self.row}: {self.reason}"


@dataclass(frozen=True)
class CsvTable:
    """The content of a CSV file.

    Args:
        columns: The header; a column without a name is ``""``.
        rows: The line that each row begins on, the header is 1, and its values by column.
        bad: The rows that are left out.
    """

    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]
    bad: list[BadRow]


def read_csv(file: Path) -> CsvTable:
    """Read a CSV file with a header.

    Raises:
        ValueError: If it cannot be read, has no header, or something else than commas between its columns.
    """
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a CSV file in UTF-8, but {file} cannot be read: {error}.") from error
    records = _records(text)
    first = next(records, None)
    if first is None:
        raise ValueError(f"Expected a CSV file with a header, but {file} is empty.")
    columns = _header(first, file)
    rows, bad = list[tuple[int, dict[str, str]]](), list[BadRow]()
    for record in records:
        reason = record.problem or _mismatch(record.cells, columns)
        if reason is None:
            named = zip(columns, record.cells, strict=True)
            rows.append((record.line, {name: cell for name, cell in named if name}))
        else:
            bad.append(BadRow(record.line, reason))
    return CsvTable(columns, rows, bad)


@dataclass(frozen=True)
class _Record:
    line: int
    cells: list[str]
    text: str
    problem: str | None = None


def _header(record: _Record, file: Path) -> tuple[str, ...]:
    counts = {delimiter: record.text.count(delimiter) for delimiter in DELIMITERS}
    other = max(counts, key=lambda delimiter: counts[delimiter])
    if counts[other] > record.text.count(","):
        raise ValueError(
            f"Expected commas between the columns of {file}, but its header has {DELIMITERS[other]}; save it with "
            "commas, and with quotes around cells that hold commas."
        )
    columns = tuple(record.cells)
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if record.problem or twice:
        reason = record.problem or f"has the column {twice} twice"
        raise ValueError(f"Expected a header with a name for each column in {file}, but it {reason}; repair it.")
    return columns


def _mismatch(cells: list[str], columns: tuple[str, ...]) -> str | None:
    if len(cells) != len(columns):
        return f"has {len(cells)} cells, but the header has {len(columns)}; quote a cell that holds commas"
    return None


def _records(text: str) -> Iterator[_Record]:
    """Split a text into records, without those that hold nothing, such as a spreadsheet's ``,,,,``."""
    at, line = 0, 1
    while at < len(text):
        cells, end, problem = _cells(text, at)
        if problem is not None:  # the rows below are read as if this one had no quote
            cells, end = [], _line_end(text, at)
        record = text[at:end]
        breaks = len(LINE_END.findall(record))
        if problem is None and breaks and any(_is_merged(cell) for cell in cells):
            problem = (
                f"has a cell with line breaks and several commas, up to line {line + breaks}; a quote that is not "
                "closed merges rows"
            )
        if any(cells) or problem is not None:
            yield _Record(line, cells, record, problem)
        following = LINE_END.match(text, end)
        at, line = following.end() if following else len(text), line + breaks + 1


def _cells(text: str, at: int) -> tuple[list[str], int, str | None]:
    """Read the cells of the record at a place; returns them, where the record ends, and what is wrong with it."""
    cells: list[str] = []
    while True:
        start = _after_spaces(text, at)
        if text[start : start + 1] == '"':
            close = _closing_quote(text, start + 1)
            if close is None:
                return cells, at, "opens a quote that is not closed; double a quote that is part of a text"
            at = _after_spaces(text, close + 1)
            if at < len(text) and text[at] not in ",\r\n":
                return cells, at, "has text after a closing quote; double a quote that is part of a text"
            cells.append(text[start + 1 : close].replace('""', '"').strip())
        else:
            end = _line_end(text, at)
            comma = text.find(",", at, end)
            end = end if comma < 0 else comma
            cells.append(text[at:end].strip())
            at = end
        if text[at : at + 1] != ",":
            return cells, at, None
        at += 1


def _after_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACES:
        at += 1
    return at


def _closing_quote(text: str, at: int) -> int | None:
    """Return where the quote is that closes a cell; doubled ones are part of it."""
    while (at := text.find('"', at)) >= 0:
        if text[at + 1 : at + 2] != '"':
            return at
        at += 2
    return None


def _line_end(text: str, at: int) -> int:
    found = LINE_END.search(text, at)
    return len(text) if found is None else found.start()


def _is_merged(cell: str) -> bool:
    return LINE_END.search(cell) is not None and cell.count(",") >= SEVERAL
