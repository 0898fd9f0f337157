"""What runs in the line: a pair, or guided clips with other weights or other seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nrg_sampler.runs.manifest import Clip
from nrg_sampler.ui.engine import Engine, Run
from nrg_sampler.ui.results import write_clip, write_pair, write_single
from nrg_sampler.ui.sampling import Part, Sampled, sample_parts
from nrg_sampler.ui.settings import Settings
from nrg_sampler.ui.visits import Result, Visit

CANDIDATES = (2, 8)
FINENESS = {"Coarse, 6 clips": 2, "Fine, 15 clips": 4}


@dataclass(frozen=True)
class Written:
    """A clip is done and its files are there."""

    sampled: Sampled
    video: Path


def sample_pair(engine: Engine, visit: Visit, settings: Settings, run: Run) -> None:
    """Sample a seed without and with the reward; report ``Written``, then the ``Result``, which the visit keeps."""
    folder = visit.new_folder()
    clips = sample_parts(engine, [Part(settings, "unguided"), Part(settings, "guided")], run)
    unguided = next(clips)
    run.report(Written(unguided, write_clip(folder, unguided, "unguided")))
    guided = next(clips)
    result = Result(settings, folder, write_pair(folder, unguided, guided))
    visit.keep(result)
    run.report(result)


def sample_singles(engine: Engine, folder: Path, parts: Sequence[Part], run: Run) -> None:
    """Sample and write guided clips; report each as ``Written``."""
    for sampled in sample_parts(engine, parts, run):
        name = f"clip-{sampled.part}"
        write_single(folder, sampled, name)
        run.report(Written(sampled, folder / f"{name}.mp4"))


def lattice(axes: int, fineness: int) -> list[str]:
    """Return weights in steps of ``1 / fineness`` that add up to 1, the first axis on top of the triangle.

    Args:
        axes: How many there are; with one, its weight goes from 0.25 to 1.
        fineness: Steps along a side.
    """
    if fineness not in FINENESS.values():
        raise ValueError(f"Expected a fineness from {', '.join(map(str, FINENESS.values()))}, but got {fineness}.")
    if axes == 1:
        return [f"{step / fineness:g}" for step in range(1, fineness + 1)]

    def shares(count: int, whole: int) -> Iterator[tuple[int, ...]]:
        if count == 1:
            yield (whole,)
            return
        for first in range(whole, -1, -1):
            for rest in shares(count - 1, whole - first):
                yield (first, *rest)

    return [":".join(f"{share / fineness:g}" for share in point) for point in shares(axes, fineness)]


def consecutive_seeds(settings: Settings, candidates: float) -> list[Part]:
    """Return guided clips of the seed asked for and the next ones.

    Raises:
        ValueError: If there are too few, too many or no more seeds.
    """
    low, high = CANDIDATES
    if not low <= candidates <= high or candidates != int(candidates):
        raise ValueError(f"Expected candidates between {low} and {high}, but got {candidates}.")
    return [Part(settings.with_seed(settings.seed + offset)) for offset in range(int(candidates))]


def score(clip: Clip, settings: Settings) -> float:
    """Return the guiding reward's weighted reading of a finished clip; 0 where it has none."""
    readings = clip.scores.get("reward", {})
    weights = settings.guidance.axis_weights.resolve(tuple(readings)) if readings else ()
    return sum(weight * value for weight, value in zip(weights, readings.values(), strict=True))


def ranked(candidates: Sequence[Written]) -> list[Written]:
    """Return candidates by score, best first."""
    return sorted(candidates, key=lambda item: score(item.sampled.clip, item.sampled.settings), reverse=True)
