"""Sample every arm on the same prompts and seeds, and let judges grade the clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.evaluation.features import FEATURES, diversity
from nrg_sampler.evaluation.panel import Judge
from nrg_sampler.evaluation.sampling import ArmSampler
from nrg_sampler.evaluation.table import ResumableTable, read_rows
from nrg_sampler.shapes.oracle import AXES, grade
from nrg_sampler.shapes.scenes import Prompt, caption

ORACLE = "oracle"
COLUMNS = ("arm", "index", "prompt", "seed", *AXES, "seconds")
FURTHER = (*(f"target_{axis}" for axis in AXES), *FEATURES, "evaluations", "memory_mib")
DIVERSITY_COLUMNS = ("arm", "index", "prompt", "diversity")
DIVERSITY_SEEDS = 8


@dataclass(frozen=True)
class Graded:
    """One clip and its grades.

    Args:
        arm: Name of the arm.
        index: Which prompt.
        prompt: Its text.
        seed: Seed of its initial noise.
        grades: VQ, MQ and TA by the oracle, each in ``[0, 1]``.
        seconds: Time to sample and decode, shared evenly by the clips of one batch.
        further: What else is known: grades of other judges and of the target, features, costs.
    """

    arm: str
    index: int
    prompt: str
    seed: int
    grades: tuple[float, ...]
    seconds: float
    further: Mapping[str, float] = field(default_factory=dict)

    def by(self, judge: str) -> tuple[float, ...]:
        """Return the grades of a judge, ``"target"`` for the guiding reward's; not a number where there are none."""
        if judge == ORACLE:
            return self.grades
        return tuple(self.further.get(f"{judge}_{axis}", float("nan")) for axis in AXES)

    def row(self) -> dict[str, Any]:
        grades = {axis: f"{value:.6f}" for axis, value in zip(AXES, self.grades, strict=True)}
        return {
            "arm": self.arm, "index": self.index, "prompt": self.prompt, "seed": self.seed, **grades,
            "seconds": f"{self.seconds:.3f}", **{name: f"{value:.6g}" for name, value in self.further.items()},
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Graded:
        grades = tuple(float(row[axis]) for axis in AXES)
        further = {name: float(value) for name, value in row.items() if name not in COLUMNS and value}
        return cls(
            row["arm"], int(row["index"]), row["prompt"], int(row["seed"]), grades, float(row["seconds"]), further
        )


def read_grades(file: Path) -> list[Graded]:
    """Read what an earlier run has graded; an incomplete last line is ignored."""
    return [Graded.from_row(row) for row in read_rows(file, COLUMNS)]


def grade_arms(
    sampler: ArmSampler,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    file: Path,
    batch: int = 10,
    judges: Mapping[str, Judge] | None = None,
) -> Iterator[Graded]:
    """Yield the grades of every arm and prompt, appending each batch to a CSV file and skipping what it holds.

    Args:
        sampler: Samples an arm.
        arms: What to compare.
        prompts: One clip each; prompt ``i`` has seed ``i`` in every arm.
        file: Per-clip CSV; a run that was interrupted goes on where it stopped.
        batch: Clips sampled together.
        judges: Who grades besides the oracle.
    """
    judges = {name: judge for name, judge in (judges or {}).items() if name != ORACLE}
    theirs = tuple(f"{name}_{axis}" for name in judges for axis in AXES)
    table = ResumableTable(file, (*COLUMNS, *FURTHER, *theirs), required=(*COLUMNS, *theirs))
    names = {arm.name for arm in arms}
    done = {(graded.arm, graded.index): graded for graded in map(Graded.from_row, table.rows)}
    yield from (graded for (arm, index), graded in done.items() if arm in names and index < len(prompts))
    # Arms in turn within a batch of prompts, so that an early stop leaves complete pairs.
    for start in range(0, len(prompts), batch):
        for arm in arms:
            wanted = range(start, min(start + batch, len(prompts)))
            missing = [index for index in wanted if (arm.name, index) not in done]
            graded_batch = _grade_batch(sampler, arm, prompts, missing, judges) if missing else []
            table.append(graded.row() for graded in graded_batch)
            yield from graded_batch


def _grade_batch(
    sampler: ArmSampler, arm: Arm, prompts: Sequence[Prompt], indices: list[int], judges: Mapping[str, Judge]
) -> list[Graded]:
    asked = [prompts[index] for index in indices]
    sampled = sampler.sample(arm, asked, indices)
    columns = {name: measure(sampled.clips).tolist() for name, measure in FEATURES.items()}
    columns["evaluations"] = [sampled.evaluations] * len(indices)
    if sampled.memory_mib is not None:
        columns["memory_mib"] = [sampled.memory_mib] * len(indices)
    scores = {name: judge(sampled.clips, asked) for name, judge in judges.items()}
    if sampled.target is not None:
        scores["target"] = sampled.target
    for name, values in scores.items():
        columns.update({f"{name}_{axis}": values[:, column].tolist() for column, axis in enumerate(AXES)})
    grades = grade(sampled.clips, asked).tolist()
    return [
        Graded(
            arm=arm.name,
            index=index,
            prompt=caption(prompts[index]),
            seed=index,
            grades=tuple(grades[row]),
            seconds=sampled.seconds,
            further={name: values[row] for name, values in columns.items()},
        )
        for row, index in enumerate(indices)
    ]


def diversity_of_arms(
    sampler: ArmSampler, arms: Sequence[Arm], prompts: Sequence[Prompt], file: Path, seeds: int = DIVERSITY_SEEDS
) -> Iterator[tuple[str, int, float]]:
    """Yield arm, prompt index and how far clips of that prompt lie apart, by as many seeds; resumable as above."""
    table = ResumableTable(file, DIVERSITY_COLUMNS, required=DIVERSITY_COLUMNS)
    done = {(row["arm"], int(row["index"])): float(row["diversity"]) for row in table.rows}
    for index, prompt in enumerate(prompts):
        for arm in arms:
            if (arm.name, index) not in done:
                sampled = sampler.sample(arm, [prompt] * seeds, range(seeds))
                done[arm.name, index] = diversity(sampled.clips)
                row = (arm.name, index, caption(prompt), f"{done[arm.name, index]:.6f}")
                table.append([dict(zip(DIVERSITY_COLUMNS, row, strict=True))])
            yield arm.name, index, done[arm.name, index]


def tabulate(grades: Sequence[Graded]) -> dict[str, dict[int, Graded]]:
    """Look grades up by arm and prompt index."""
    table: dict[str, dict[int, Graded]] = {}
    for graded in grades:
        table.setdefault(graded.arm, {})[graded.index] = graded
    return table


def column(clips: Sequence[Graded], judge: str) -> torch.Tensor:
    """Return the grades of a judge, shape ``(n, axes)``."""
    return torch.tensor([clip.by(judge) for clip in clips], dtype=torch.float32)
