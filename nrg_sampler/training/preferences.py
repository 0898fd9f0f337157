"""Preference pairs from a CSV file, with a reason for every row that cannot be used.

The columns are VideoReward's: ``path_A, path_B, prompt``, one column per axis with the labels ``A | B | same |
invalid`` (``VQ``, ``MQ``, ``TA``; others have to be named, for the order of presentation has values A and B as well),
and optionally ``fps_A, num_frames_A, fps_B, num_frames_B``. VideoGen-RewardBench reads as it is published.
A teacher's scores, for the loss ``regression``, are numbers in ``VQ_score_A, VQ_score_B`` and so on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nrg_sampler.training.csv_table import BadRow, CsvTable, read_csv

LABELS = {"A": 1.0, "B": -1.0, "same": 0.0, "invalid": math.nan, "": math.nan}
REQUIRED = ("path_A", "path_B", "prompt")
AXES = ("VQ", "MQ", "TA")  # VideoReward's; others are axes where they are named
STATED = tuple(f"{name}_{side}" for name in ("fps", "num_frames") for side in "AB")
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


@dataclass
class PreferenceTable:
    """The content of a preference file.

    Args:
        axes: Names of the axes, in the order of the columns.
        pairs: The rows that can be used.
        bad: The others.
        passed_over: Columns that are not read, and why if they look like an axis.
        doubtful: Those of them that may be meant as an axis.
    """

    axes: tuple[str, ...]
    pairs: list[PreferencePair]
    bad: list[BadRow] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    doubtful: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return what was read and what was not, in one sentence."""
        rows = len(self.pairs) + len(self.bad)
        text = f"axes {', '.join(self.axes)}; {rows} rows" + (f", {len(self.bad)} left out" if self.bad else "")
        columns = [f"{name} ({reason})" if reason else name for name, reason in self.passed_over.items()]
        return text + (f"; columns passed over: {', '.join(columns)}" if columns else "")

    def keep(self, is_bad: Callable[[PreferencePair], str | None]) -> None:
        """Move the pairs that ``is_bad`` gives a reason for to the bad rows."""
        reasons = [(pair, is_bad(pair)) for pair in self.pairs]
        self.pairs = [pair for pair, reason in reasons if reason is None]
        self.bad = sorted(
            [*self.bad, *(BadRow(pair.row, reason) for pair, reason in reasons if reason is not None)],
            key=lambda bad: bad.row,
        )

    def require(self, strict: bool = False) -> None:
        """Stop if nothing is left or, if ``strict``, if any row is bad or a column may be meant as an axis.

        Raises:
            ValueError: With the number of bad rows and the reason of the first, or with the columns.
        """
        if self.doubtful and strict:
            reasons = ", ".join(f"{name} {self.passed_over[name]}" for name in self.doubtful)
            raise ValueError(f"Expected columns that are axes or hold no labels, but {reasons}; name the axes.")
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
        axes: Which columns are axes; by default those of ``VQ``, ``MQ`` and ``TA`` with labels, else all with scores.
        videos: Folder that relative paths start from; the file's own by default.

    Raises:
        ValueError: If the file cannot be read, or lacks a column.
    """
    content = read_csv(file)
    if not content.rows and not content.bad:
        raise ValueError(f"Expected preference pairs in {file}, but it holds none; add rows below the header.")
    columns = _sort_columns(content, axes)
    chosen = columns.axes
    scored = all(f"{axis}_score_{side}" in content.columns for axis in chosen for side in "AB") and bool(chosen)
    missing = [name for name in REQUIRED if name not in content.columns]
    missing += [axis for axis in chosen if axis not in content.columns and not scored]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"Expected every axis once, but got {', '.join(chosen)}.")
    if not chosen and not content.rows:
        raise ValueError(f"Expected at least one row of {file} to be usable, but the first is {content.bad[0]}.")
    if missing or not chosen:
        wanted = (
            ", ".join(missing) if missing else f"an axis ({', '.join(AXES)}) with the labels A, B, same or invalid"
        )
        hint = f", or name {', '.join(columns.doubtful)} as axes" if columns.doubtful and not missing else ""
        names = ", ".join(content.columns)
        raise ValueError(f"Expected the column {wanted} in {file}, but it has {names}; rename yours{hint}.")
    table = PreferenceTable(chosen, [], list(content.bad), columns.passed_over, columns.doubtful)
    seen: dict[tuple[str, ...], int] = {}
    for number, row in content.rows:
        try:
            pair = _pair(number, row, chosen, scored, videos or file.parent)
            if pair.identity in seen:
                raise _UnusableRowError(f"repeats the pair of row {seen[pair.identity]}")
        except _UnusableRowError as reason:
            table.bad.append(BadRow(number, str(reason)))
            continue
        seen[pair.identity] = number
        table.pairs.append(pair)
    table.bad.sort(key=lambda bad: bad.row)
    return table


class _UnusableRowError(Exception):
    """Why a row is left out."""


@dataclass(frozen=True)
class _Columns:
    """What the columns of a file are."""

    axes: tuple[str, ...]
    passed_over: dict[str, str]
    doubtful: tuple[str, ...]


def _sort_columns(table: CsvTable, wanted: Sequence[str] | None) -> _Columns:
    """Find the axes, and say why other columns with labels are none: a name alone tells an axis from other choices."""
    cells = {column: [row[column] for _, row in table.rows if row[column]] for column in table.columns if column}
    labelled = {column: sum(value in LABELS for value in values) for column, values in cells.items()}
    both = [column.removesuffix("_score_A") for column in cells if column.endswith("_score_A")]
    scored = tuple(axis for axis in both if f"{axis}_score_B" in cells)
    axes = tuple(wanted or ()) or tuple(axis for axis in cells if axis in AXES and labelled[axis]) or scored
    used = {*REQUIRED, *axes, OVERALL, *STATED, *(f"{axis}_score_{side}" for axis in axes for side in "AB")}
    passed_over, doubtful = {}, []
    for column, values in cells.items():
        if column in used:
            continue
        reason = ""
        if column in AXES:
            reason = "has labels, but is not among the axes named" if labelled[column] else "has no label"
        elif values and 2 * labelled[column] >= len(values):
            reason = f"has labels, but is not one of {', '.join(AXES)}: name it as an axis to train it"
        passed_over[column] = reason
        if reason and not wanted and values:
            doubtful.append(column)
    if "" in table.columns:
        passed_over["without a name"] = ""
    return _Columns(axes, passed_over, tuple(doubtful))


def _pair(number: int, row: dict[str, str], axes: tuple[str, ...], scored: bool, videos: Path) -> PreferencePair:
    if not row["prompt"]:
        raise _UnusableRowError("has no prompt")
    if "\0" in row["prompt"]:
        raise _UnusableRowError("has a null byte in its prompt, which is no text; save the file in UTF-8")
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
        if not is_file(clip):
            raise _UnusableRowError(f"names {clip.name}, which does not exist")
    overall = _label(row, OVERALL)
    return PreferencePair(number, clips[0], clips[1], row["prompt"], preference, overall, scores, (fps[0], fps[1]))


def is_file(path: Path) -> bool:
    """Return whether a path names a file; one that no file can have does not."""
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


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
