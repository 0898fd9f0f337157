"""Audit a judge of the shapes world: change clips in ways whose effect on an eye is known, and see what it says.

Example:
  python -m nrg_sampler.judges.audit --n 120
  python -m nrg_sampler.judges.audit --n 120 --judge pixel
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrg_sampler.shapes.changes import CHANGES, SLIGHT, VISIBLE
from nrg_sampler.shapes.fit import require_world_size
from nrg_sampler.shapes.scenes import Prompt, caption, prompts

Judge = Callable[[Tensor, Sequence[Prompt]], Tensor]
VISIBLE_FALL = 0.5  # standard deviations that VQ has to fall by at a visible fault
LEVEL = 0.1  # and that no axis may rise by at any change, nor move by at a slight one


@dataclass(frozen=True)
class AuditRow:
    """What a judge says of one change.

    Args:
        name: Of the change, see ``CHANGES``.
        moved: Mean change of each axis, in standard deviations of the unchanged clips.
        error: Standard error of each mean.
    """

    name: str
    moved: tuple[float, ...]
    error: tuple[float, ...]

    @property
    def passes(self) -> bool:
        """Whether the judge says what an eye does; the first axis is the picture's quality."""
        falls = self.name not in VISIBLE or self.moved[0] <= -VISIBLE_FALL
        still = self.name not in SLIGHT or all(moved >= -LEVEL for moved in self.moved)
        return falls and still and all(moved <= LEVEL for moved in self.moved)  # which no NaN is


def audit(judge: Judge, clips: Tensor, wanted: Sequence[Prompt]) -> Iterator[AuditRow]:
    """Yield what a judge says of each change.

    Args:
        judge: ``(clips, prompts) -> scores (B, axes)``, picture quality first, more is better.
        clips: Clips as they come out of the model, ``(B, 3, T, H, W)`` in ``[0, 1]``.
        wanted: Their prompts.

    Raises:
        ValueError: If the clips are not of the world's size, or the judge does not tell them apart on some axis.
    """
    require_world_size(clips)
    clips = clips.float()
    before = judge(clips, wanted)
    unit = before.std(dim=0) if len(before) > 1 else torch.zeros(before.shape[1])
    if not (unit > 0).all():
        raise ValueError(
            f"Expected clips that the judge tells apart on each axis, but its scores of {len(clips)} deviate by "
            f"{', '.join(f'{value:g}' for value in unit.tolist())}; audit more clips, or others."
        )
    for name, change in CHANGES.items():
        moved = (judge(change(clips).clamp(0, 1), wanted) - before) / unit
        error = moved.std(dim=0) / len(clips) ** 0.5
        yield AuditRow(name, tuple(moved.mean(dim=0).tolist()), tuple(error.tolist()))


def unguided_clips(count: int) -> tuple[Tensor, list[Prompt]]:
    """Sample the bundled model at its default settings: validation prompt ``i`` with seed ``i``, without guidance.

    Raises:
        ValueError: If there are not as many validation prompts.
    """
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline

    wanted = prompts("validation")
    if not 1 <= count <= len(wanted):
        raise ValueError(f"Expected 1 to {len(wanted)} clips, one for each validation prompt, but got {count}.")
    wanted = wanted[:count]
    pipe = NRGFlowPipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    parts = []
    for start in range(0, count, 20):
        rows = range(start, min(start + 20, count))
        seeds = [torch.Generator().manual_seed(row) for row in rows]
        texts = [caption(wanted[row]) for row in rows]
        parts.append(pipe(texts, reward_scale=0, generator=seeds, output_type="pt").frames)
    return torch.cat(parts).transpose(1, 2), wanted


def main() -> None:
    """Print the table of a judge."""
    parser = argparse.ArgumentParser(
        prog="python -m nrg_sampler.judges.audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--n", type=int, default=40, help="unguided clips")
    parser.add_argument("--judge", choices=("oracle", "pixel"), default="oracle")
    arguments = parser.parse_args()
    try:
        clips, wanted = unguided_clips(arguments.n)
        rows = audit(bundled_judge(arguments.judge), clips, wanted)
        first = next(rows)
    except ValueError as error:
        parser.error(str(error))
    print("| change | VQ | MQ | TA | passes |\n|---|---|---|---|---|")
    for row in itertools.chain([first], rows):
        cells = (f"{moved:+.2f} ± {1.96 * error:.2f}" for moved, error in zip(row.moved, row.error, strict=True))
        print(f"| {row.name} | {' | '.join(cells)} | {'yes' if row.passes else 'no'} |", flush=True)


def bundled_judge(name: str) -> Judge:
    """Return the ``oracle`` or the ``pixel`` judge as a function of clips and prompts."""
    from nrg_sampler.judges.shapes import load_pixel_judge
    from nrg_sampler.shapes.oracle import grade

    if name == "oracle":
        return lambda clips, wanted: torch.cat(
            [grade(part, list(wanted[start : start + 10])) for start, part in _parts(clips)]
        )
    judge = load_pixel_judge()
    return lambda clips, wanted: judge(clips, [caption(prompt) for prompt in wanted])


def _parts(clips: Tensor, size: int = 10) -> Iterator[tuple[int, Tensor]]:
    """Cut clips into parts that fit into the cache."""
    yield from ((start, clips[start : start + size]) for start in range(0, len(clips), size))


if __name__ == "__main__":
    main()
