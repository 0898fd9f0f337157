"""Sample every arm on the same prompts and seeds, and let judges grade the clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.evaluation.features import FEATURES, diversity
from nrg_sampler.evaluation.panel import Grader
from nrg_sampler.evaluation.table import ResumableTable, parse_rows, read_rows, write_rows
from nrg_sampler.rewards.weights import RewardWeights
from nrg_sampler.search import candidate_seeds
from nrg_sampler.shapes.oracle import AXES, grade
from nrg_sampler.shapes.scenes import Prompt, caption

ORACLE = "oracle"
TARGET = "target"
COLUMNS = ("arm", "index", "prompt", "seed", *AXES, "seconds")
COSTS = ("cpu_seconds", "decoding", "evaluations", "memory_mib")
FURTHER = (*(f"{TARGET}_{axis}" for axis in AXES), *FEATURES, *COSTS)
DIVERSITY_COLUMNS = ("arm", "index", "prompt", "diversity")
DIVERSITY_SEEDS = 8


@dataclass(frozen=True)
class Graded:
    """One clip and its grades.

    Args:
        arm: Name of the arm, or of the source of single clips, see ``ArmSampler.source``.
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

    @property
    def cost(self) -> float:
        """Seconds that it took, of the processor where that is known, else by the clock."""
        return self.further.get("cpu_seconds", self.seconds)

    def row(self) -> dict[str, Any]:
        """Return the row of a CSV file."""
        grades = {axis: f"{value:.6f}" for axis, value in zip(AXES, self.grades, strict=True)}
        return {
            "arm": self.arm, "index": self.index, "prompt": self.prompt, "seed": self.seed, **grades,
            "seconds": f"{self.seconds:.3f}", **{name: f"{value:.6g}" for name, value in self.further.items()},
        }  # fmt: skip

    @classmethod
    def from_row(cls, row: Mapping[str, str]) -> Graded:
        """Read a row of a CSV file."""
        grades = tuple(float(row[axis]) for axis in AXES)
        further = {name: float(value) for name, value in row.items() if name not in COLUMNS and value}
        return cls(
            row["arm"], int(row["index"]), row["prompt"], int(row["seed"]), grades, float(row["seconds"]), further
        )


def read_grades(file: Path) -> list[Graded]:
    """Read what an earlier run has graded; an incomplete last line is ignored."""
    return parse_rows(file, read_rows(file, COLUMNS), Graded.from_row)


def write_grades(file: Path, grades: Sequence[Graded]) -> None:
    """Write a table of graded clips as CSV, one row each."""
    further = dict.fromkeys((*FURTHER, *(name for graded in grades for name in graded.further)))
    write_rows(file, (*COLUMNS, *further), [graded.row() for graded in grades])


def grade_arms(
    sampler: ArmSampler,
    arms: Sequence[Arm],
    prompts: Sequence[Prompt],
    file: Path,
    batch: int = 20,
    judges: Mapping[str, Grader] | None = None,
) -> Iterator[Graded]:
    """Yield the grades of every arm and prompt, sampling only what no other arm has sampled.

    Args:
        sampler: Samples single clips.
        arms: What to compare.
        prompts: One clip each; prompt ``i`` has seed ``i`` in every arm, and further candidates the same further
            seeds.
        file: CSV of single clips by source and seed, which suites share; a run that was interrupted goes on where it
            stopped.
        batch: Clips sampled together.
        judges: Who grades besides the oracle.
    """
    judges = {name: judge for name, judge in (judges or {}).items() if name != ORACLE}
    theirs = tuple(f"{name}_{axis}" for name in judges for axis in AXES)
    table = ResumableTable(file, (*COLUMNS, *FURTHER, *theirs), required=(*COLUMNS, *theirs))
    done = {(clip.arm, clip.seed): clip for clip in parse_rows(file, table.rows, Graded.from_row)}
    _require_same_prompts(done.values(), prompts, file)
    # Arms in turn within a batch of prompts, so that an early stop leaves complete pairs.
    for start in range(0, len(prompts), batch):
        wanted = range(start, min(start + batch, len(prompts)))
        for arm in arms:
            source = sampler.source(arm)
            seeds = {index: candidate_seeds(index, arm.candidates) for index in wanted}
            for number in range(arm.candidates):
                missing = {
                    index: seeds[index][number] for index in wanted if (source, seeds[index][number]) not in done
                }
                if missing:
                    rows = [clip.row() for clip in _grade_batch(sampler, arm, source, prompts, missing, judges)]
                    table.append(rows)
                    # as they will be read: a run that goes on makes the same tables to the last digit
                    done.update({(source, clip.seed): clip for clip in map(Graded.from_row, rows)})
            for index in wanted:
                yield chosen(arm, [done[source, seed] for seed in seeds[index]])


def _require_same_prompts(clips: Iterable[Graded], prompts: Sequence[Prompt], file: Path) -> None:
    """Refuse clips of other prompts, such as those of another version of the world.

    Raises:
        ValueError: With the first of them.
    """
    captions = [caption(prompt) for prompt in prompts]
    for clip in clips:
        if clip.index < len(captions) and clip.prompt != captions[clip.index]:
            raise ValueError(
                f"Expected clips of the prompts of this evaluation in {file}, but number {clip.index} there is "
                f"{clip.prompt!r}, not {captions[clip.index]!r}; name another folder as `out`."
            )


def chosen(arm: Arm, candidates: Sequence[Graded]) -> Graded:
    """Return the candidate that ``arm`` takes, at the cost of all of them, sampled one after the other.

    Where the reward chooses, it reads latents, and only its choice has to be decoded.
    """
    if len(candidates) == 1:
        return replace(candidates[0], arm=arm.name)
    grades = column(candidates, arm.judge or TARGET)
    weights = RewardWeights() if arm.judge or arm.search is None else RewardWeights.parse(arm.search.weights)
    best = candidates[int((grades.nan_to_num() @ torch.tensor(weights.resolve(AXES))).argmax())]
    further = dict(best.further)
    spared = 0.0 if arm.judge else sum(clip.further.get("decoding", 0.0) for clip in candidates if clip is not best)
    share = 1 - spared / len(candidates)
    for name in ("cpu_seconds", "evaluations"):
        if name in further:
            further[name] = sum(clip.further[name] for clip in candidates) * (share if name == "cpu_seconds" else 1)
    if "memory_mib" in further:
        further["memory_mib"] = max(clip.further["memory_mib"] for clip in candidates)
    return replace(best, arm=arm.name, seconds=share * sum(clip.seconds for clip in candidates), further=further)


def _grade_batch(
    sampler: ArmSampler,
    arm: Arm,
    source: str,
    prompts: Sequence[Prompt],
    seeds: Mapping[int, int],
    judges: Mapping[str, Grader],
) -> list[Graded]:
    """Sample and grade one clip of each prompt in ``seeds``, which holds the seed by the prompt's index."""
    asked = [prompts[index] for index in seeds]
    sampled = sampler.sample(arm, asked, list(seeds.values()))
    columns = {name: measure(sampled.clips).tolist() for name, measure in FEATURES.items()}
    for name in COSTS:
        if getattr(sampled, name) is not None:
            columns[name] = [getattr(sampled, name)] * len(seeds)
    scores = {name: judge(sampled.clips, asked) for name, judge in judges.items()}
    if sampled.target is not None:
        scores[TARGET] = sampled.target
    for name, values in scores.items():
        columns.update({f"{name}_{axis}": values[:, column].tolist() for column, axis in enumerate(AXES)})
    grades = grade(sampled.clips, asked).tolist()
    return [
        Graded(
            arm=source,
            index=index,
            prompt=caption(prompts[index]),
            seed=seed,
            grades=tuple(grades[row]),
            seconds=sampled.seconds,
            further={name: values[row] for name, values in columns.items()},
        )
        for row, (index, seed) in enumerate(seeds.items())
    ]


def diversity_of_arms(
    sampler: ArmSampler, arms: Sequence[Arm], prompts: Sequence[Prompt], file: Path, seeds: int
) -> Iterator[tuple[str, int, float]]:
    """Yield arm, prompt index and how far clips of that prompt lie apart, by as many seeds; resumable as above."""
    table = ResumableTable(file, DIVERSITY_COLUMNS, required=DIVERSITY_COLUMNS)
    done = dict(parse_rows(file, table.rows, _diversity))
    for index, prompt in enumerate(prompts):
        for arm in arms:
            source = sampler.source(arm)
            if (source, index) not in done:
                sampled = sampler.sample(arm, [prompt] * seeds, range(seeds))
                done[source, index] = diversity(sampled.clips)
                row = (source, index, caption(prompt), f"{done[source, index]:.6f}")
                table.append([dict(zip(DIVERSITY_COLUMNS, row, strict=True))])
            yield arm.name, index, done[source, index]


def _diversity(row: Mapping[str, str]) -> tuple[tuple[str, int], float]:
    return (row["arm"], int(row["index"])), float(row["diversity"])


def tabulate(grades: Sequence[Graded]) -> dict[str, dict[int, Graded]]:
    """Look grades up by arm and prompt index."""
    table: dict[str, dict[int, Graded]] = {}
    for graded in grades:
        table.setdefault(graded.arm, {})[graded.index] = graded
    return table


def column(clips: Sequence[Graded], judge: str) -> torch.Tensor:
    """Return the grades of a judge, shape ``(n, axes)``."""
    return torch.tensor([clip.by(judge) for clip in clips], dtype=torch.float32)
