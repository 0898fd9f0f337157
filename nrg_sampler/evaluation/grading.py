"""Sample every arm on the same prompts and seeds, and let the oracle of the shapes world grade the clips."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.files import replacing
from nrg_sampler.shapes.oracle import AXES, grade
from nrg_sampler.shapes.scenes import Prompt, caption

COLUMNS = ("arm", "index", "prompt", "seed", *AXES, "seconds")


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
    """

    arm: str
    index: int
    prompt: str
    seed: int
    grades: tuple[float, ...]
    seconds: float

    def row(self) -> dict[str, Any]:
        grades = {axis: f"{value:.6f}" for axis, value in zip(AXES, self.grades, strict=True)}
        return {
            "arm": self.arm, "index": self.index, "prompt": self.prompt, "seed": self.seed, **grades,
            "seconds": f"{self.seconds:.3f}",
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: dict[str, str]) -> Graded:
        grades = tuple(float(row[axis]) for axis in AXES)
        return cls(row["arm"], int(row["index"]), row["prompt"], int(row["seed"]), grades, float(row["seconds"]))


def read_grades(file: Path) -> list[Graded]:
    """Read what an earlier run has graded; an incomplete last line is ignored."""
    if not file.exists():
        return []
    with open(file, newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if all(row.get(name) for name in COLUMNS)]
    return [Graded.from_row(row) for row in rows]


def grade_arms(
    pipe: Any, arms: Sequence[Arm], prompts: Sequence[Prompt], file: Path, batch: int = 10, **sampling: Any
) -> Iterator[Graded]:
    """Yield the grades of every arm and prompt, appending each batch to a CSV file and skipping what it holds.

    Args:
        pipe: An ``NRGFlowPipeline`` of the shapes world.
        arms: What to compare.
        prompts: One clip each; prompt ``i`` has seed ``i`` in every arm.
        file: Per-clip CSV; a run that was interrupted goes on where it stopped.
        batch: Clips sampled together.
        sampling: Further arguments of the pipeline, the same in every arm.
    """
    done = {(graded.arm, graded.index): graded for graded in read_grades(file)}
    # An interrupted run may have left half a line at the end: start from the whole ones.
    with replacing(file) as partial, open(partial, "w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(graded.row() for graded in done.values())
    yield from done.values()
    with open(file, "a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        # Arms in turn within a batch of prompts, so that an early stop leaves complete pairs.
        for start in range(0, len(prompts), batch):
            for arm in arms:
                missing = [
                    index for index in range(start, min(start + batch, len(prompts))) if (arm.name, index) not in done
                ]
                for graded in _grade_batch(pipe, arm, prompts, missing, sampling) if missing else ():
                    writer.writerow(graded.row())
                    yield graded
                stream.flush()


def _grade_batch(
    pipe: Any, arm: Arm, prompts: Sequence[Prompt], indices: list[int], sampling: dict[str, Any]
) -> Iterator[Graded]:
    texts = [caption(prompts[index]) for index in indices]
    started = time.perf_counter()
    guidance = {"reward_scale": 0.0} if arm.guidance is None else {"reward_guidance": arm.guidance}
    output = pipe(
        texts,
        generator=[torch.Generator().manual_seed(index) for index in indices],
        output_type="pt",
        **guidance,
        **sampling,
    )
    clips: Tensor = output.frames.transpose(1, 2)  # (B, 3, T, H, W)
    seconds = (time.perf_counter() - started) / len(indices)
    for index, text, grades in zip(
        indices, texts, grade(clips, [prompts[index] for index in indices]).tolist(), strict=True
    ):
        yield Graded(arm.name, index, text, index, tuple(grades), seconds)
