"""Preference pairs from a CSV file, with a reason for every row that cannot be used.

The columns are VideoReward's: ``path_A, path_B, prompt``, one column per axis with the labels ``A | B | same |
invalid``, and optionally ``fps_A, num_frames_A, fps_B, num_frames_B``. VideoGen-RewardBench reads as it is published.
A teacher's scores, for the loss ``regression``, are numbers in ``VQ_score_A, VQ_score_B`` and so on.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

LABELS = {"A": 1.0, "B": -1.0, "same": 0.0, "invalid": math.nan, "": math.nan}
REQUIRED = ("path_A", "path_B", "prompt")
OVERALL = "Overall"  # the label of the clip as a whole; the sum of the axes predicts it, it is no axis
FPS_TOLERANCE = 0.05  # relative: 23.976 is called 24
FEW_PROMPTS = 10  # fewer cannot be shared out by prompt


@dataclass(frozen=True)
class PreferencePair:
    """Two clips of one prompt and their labels.

    Args:
        row: Line of the file, the header is 1.
        first: Clip A.
        second: Clip B.
        prompt: The prompt of both.
        preference: For each axis 1 (A is better), -1 (B is), 0 (the same) or NaN (no label).
        overall: The same for the clip as a whole.
        scores: For each axis a teacher's scores of A and of B; empty without a teacher.
        fps: Frames a second of A and of B, as stated in the file; NaN where it is not.
    """

    row: int
    first: Path
    second: Path
    prompt: str
    preference: tuple[float, ...]
    overall: float = math.nan
    scores: tuple[tuple[float, float], ...] = ()
    fps: tuple[float, float] = (math.nan, math.nan)

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for the same two clips and prompt, in either order."""
        return (*sorted((str(self.first), str(self.second))), self.prompt)


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    row: int
    reason: str

    def __str__(self) -> str:
        """Return the row and the reason."""
        return f"row {self.row}: {self.reason}"


@dataclass
class PreferenceTable:
    """The content of a preference file.

    Args:
        axes: Names of the axes, in the order of the columns.
        pairs: The rows that can be used.
        bad: The others.
    """

    axes: tuple[str, ...]
    pairs: list[PreferencePair]
    bad: list[BadRow] = field(default_factory=list)

    def keep(self, is_bad: Callable[[PreferencePair], str | None]) -> None:
        """Move the pairs that ``is_bad`` gives a reason for to the bad rows."""
        reasons = [(pair, is_bad(pair)) for pair in self.pairs]
        self.pairs = [pair for pair, reason in reasons if reason is None]
        self.bad = sorted(
            [*self.bad, *(BadRow(pair.row, reason) for pair, reason in reasons if reason is not None)],
            key=lambda bad: bad.row,
        )

    def require(self, strict: bool = False) -> None:
        """Stop if nothing is left or, if ``strict``, if any row is bad.

        Raises:
            ValueError: With the number of bad rows and the reason of the first.
        """
        if self.bad and (strict or not self.pairs):
            raise ValueError(
                f"Expected {'every row' if strict else 'at least one row'} of the preference file to be usable, but "
                f"{len(self.bad)} of {len(self.bad) + len(self.pairs)} are not; the first is {self.bad[0]}."
            )
        if not self.pairs:
            raise ValueError("Expected at least one row in the preference file, but it holds none; add pairs.")

    def preferences(self) -> Tensor:
        """Return the labels, shape ``(pairs, axes)``: 1, -1, 0 or NaN."""
        return torch.tensor([pair.preference for pair in self.pairs])

    def scores(self) -> Tensor | None:
        """Return a teacher's scores, shape ``(pairs, axes, 2)``, or ``None`` without a teacher."""
        if not self.pairs or not self.pairs[0].scores:
            return None
        return torch.tensor([pair.scores for pair in self.pairs])


def read_preferences(file: Path, axes: Sequence[str] | None = None, videos: Path | None = None) -> PreferenceTable:
    """Read a preference file, without opening its clips; see `decoding.inspect_pairs` for that.

    Args:
        file: A CSV file with a header.
        axes: Which columns are axes; by default all whose values are mostly labels, save for ``Overall``.
        videos: Folder that relative paths start from; the file's own by default.

    Raises:
        ValueError: If the file cannot be read, or lacks a column.
    """
    rows = csv_rows(file)
    if not rows:
        raise ValueError(f"Expected preference pairs in {file}, but it holds none; add rows below the header.")
    columns = list(rows[0][1])
    chosen = tuple(axes) if axes else _find_axes(rows, columns)
    scored = all(f"{axis}_score_{side}" in columns for axis in chosen for side in "AB") and bool(chosen)
    missing = [name for name in REQUIRED if name not in columns]
    missing += [axis for axis in chosen if axis not in columns and not scored]
    if missing or not chosen:
        wanted = ", ".join(missing) if missing else "an axis with the labels A, B, same or invalid"
        raise ValueError(f"Expected the column {wanted} in {file}, but it has {', '.join(columns)}; rename yours.")
    table = PreferenceTable(chosen, [])
    seen: dict[tuple[str, ...], int] = {}
    for number, row in rows:
        try:
            pair = _pair(number, row, chosen, scored, videos or file.parent)
            if pair.identity in seen:
                raise _UnusableRowError(f"repeats the pair of row {seen[pair.identity]}")
        except _UnusableRowError as reason:
            table.bad.append(BadRow(number, str(reason)))
            continue
        seen[pair.identity] = number
        table.pairs.append(pair)
    return table


class _UnusableRowError(Exception):
    """Why a row is left out."""


def csv_rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header: the line of each row and its values by column.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            return [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Expected a CSV file, but {file} cannot be read: {error}.") from error


def _find_axes(rows: Sequence[tuple[int, dict[str, str]]], columns: Sequence[str]) -> tuple[str, ...]:
    """Find the columns with labels in at least half of their rows: an unknown label costs a row, not an axis."""
    labelled = []
    for column in columns:
        if column not in (*REQUIRED, OVERALL) and not column.endswith(("_A", "_B")):
            values = [row[column] for _, row in rows if row.get(column)]
            if values and 2 * sum(value in LABELS for value in values) >= len(values):
                labelled.append(column)
    scored = {column.removesuffix("_score_A") for column in columns if column.endswith("_score_A")}
    return tuple(labelled) or tuple(sorted(scored))


def _pair(number: int, row: dict[str, str], axes: tuple[str, ...], scored: bool, videos: Path) -> PreferencePair:
    if not row["prompt"]:
        raise _UnusableRowError("has no prompt")
    clips = []
    for side in "AB":
        if not row[f"path_{side}"]:
            raise _UnusableRowError(f"has no path_{side}")
        clips.append(videos / row[f"path_{side}"])
    if clips[0] == clips[1]:
        raise _UnusableRowError(f"compares {clips[0].name} with itself")
    preference = tuple(_label(row, axis) for axis in axes)
    scores = tuple((_score(row, f"{axis}_score_A"), _score(row, f"{axis}_score_B")) for axis in axes) if scored else ()
    if all(map(math.isnan, preference)) and not any(math.isfinite(value) for both in scores for value in both):
        raise _UnusableRowError("has no label on any axis")
    fps = tuple(_positive(row, f"fps_{side}") for side in "AB")
    for side in "AB":
        _positive(row, f"num_frames_{side}")
    for clip in clips:
        if not clip.is_file():
            raise _UnusableRowError(f"names {clip.name}, which does not exist")
    overall = LABELS.get(row.get(OVERALL, ""), math.nan)
    return PreferencePair(number, clips[0], clips[1], row["prompt"], preference, overall, scores, (fps[0], fps[1]))


def _label(row: dict[str, str], axis: str) -> float:
    label = row.get(axis, "")
    if label not in LABELS:
        raise _UnusableRowError(f"has the label {label!r} for {axis}; known are A, B, same and invalid")
    return LABELS[label]


def _score(row: dict[str, str], column: str) -> float:
    return _number(row, column) if row.get(column) else math.nan


def _positive(row: dict[str, str], column: str) -> float:
    if not row.get(column):
        return math.nan
    value = _number(row, column)
    if not value > 0:
        raise _UnusableRowError(f"has {column} {row[column]}")
    return value


def _number(row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _UnusableRowError(f"has {column} {row[column]!r}, which is no number")
    return value


def split_pairs(pairs: Sequence[PreferencePair], share: float, salt: str) -> Iterator[bool]:
    """Draw a share of the pairs, the same in every run and on every machine; yields for each pair whether it is drawn.

    The share is drawn by prompt, so that no prompt is on both sides; where there are fewer than ten prompts, by pair.
    """
    by_prompt = len({pair.prompt for pair in pairs}) >= FEW_PROMPTS
    names = [
        pair.prompt if by_prompt else "\0".join((pair.first.name, pair.second.name, pair.prompt)) for pair in pairs
    ]
    return (in_share(name, share, salt) for name in names)


def in_share(name: str, share: float, salt: str) -> bool:
    """Return whether a name is in a share of all names; a larger share holds all of a smaller one."""
    digest = hashlib.sha256(f"{salt}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
