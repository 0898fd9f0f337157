"""A CSV file that an interrupted run can go on with."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nrg_sampler.files import replacing


def read_rows(file: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows that have a value in every required column; an incomplete last line is ignored."""
    if not file.exists():
        return []
    with open(file, newline="") as stream:
        return [row for row in csv.DictReader(stream) if all(row.get(name) for name in required)]


class ResumableTable:
    """Append rows to a CSV file that may hold some already.

    Args:
        file: The file; an interrupted run may have left half a line at its end, so the whole ones are written anew.
        columns: All columns, in order.
        required: Those without which a row counts as missing.
    """

    def __init__(self, file: Path, columns: Sequence[str], required: Sequence[str]) -> None:
        self.file, self.columns = file, tuple(columns)
        self.rows: list[dict[str, Any]] = [dict(row) for row in read_rows(file, required)]
        with replacing(file) as partial, open(partial, "w", newline="") as stream:
            writer = self._writer(stream)
            writer.writeheader()
            writer.writerows(self.rows)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows to the end of the file, at once."""
        with open(self.file, "a", newline="") as stream:
            self._writer(stream).writerows(rows)

    def _writer(self, stream: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(stream, self.columns, extrasaction="ignore", restval="")
