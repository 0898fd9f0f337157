"""Who grades in the tables: judges, none of which may be the reward that guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nrg_sampler.checkpoints import BUNDLED, pipeline_source, read_sampling
from nrg_sampler.judges.base import Judge
from nrg_sampler.judges.loading import JUDGES, load_judge
from nrg_sampler.judges.shapes import load_pixel_judge
from nrg_sampler.rewards.named.table import TABLE, find
from nrg_sampler.shapes.oracle import AXES, grade
from nrg_sampler.shapes.scenes import Prompt, caption

# Maps clips (B, 3, T, H, W) in [0, 1] and their prompts to scores (B, 3) on VQ, MQ and TA, higher is better.
Grader = Callable[[Tensor, Sequence[Prompt]], Tensor]


class _ByCaption:
    """A judge that gets the caption of a prompt, and the rate of the bundled model's clips."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._fps = float(read_sampling(pipeline_source(BUNDLED))["fps"])

    def __call__(self, clips: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return in_columns(self._judge(clips, [caption(prompt) for prompt in prompts], self._fps), self._judge.axes)


def in_columns(scores: Tensor, axes: Sequence[str]) -> Tensor:
    """Return scores ``(B, axes)`` as the tables have them, ``(B, 3)``: not a number where an axis is missing."""
    absent = scores.new_full((len(scores),), float("nan"))
    return torch.stack([scores[:, axes.index(axis)] if axis in axes else absent for axis in AXES], dim=1)


def panel(names: Sequence[str]) -> dict[str, Grader]:
    """Make the named judges, those of :func:`nrg_sampler.judges.loading.load_judge`, by the part before the colon.

    Raises:
        ValueError: If one is unknown or its folder does not fit.
    """
    require_known(names)
    # The oracle measures by the prompt itself: not every caption names all that was asked.
    return {name.partition(":")[0]: grade if name == "oracle" else _ByCaption(_of_all_axes(name)) for name in names}


def _of_all_axes(name: str) -> Judge:
    judge = load_judge(name)
    if missing := [axis for axis in AXES if axis not in judge.axes]:
        raise ValueError(
            f"Expected a judge of {', '.join(AXES)} for the tables, but {name!r} grades {', '.join(judge.axes)} and "
            f"not {', '.join(missing)}; grade videos by it with `nrg-sampler score` or `compare --judge`."
        )
    return judge


def require_known(names: Sequence[str]) -> None:
    """Refuse judges that nobody knows.

    Raises:
        ValueError: If one is unknown or there is none.
    """
    kinds = {name: name.partition(":")[0] for name in names}
    unknown = [name for name, kind in kinds.items() if kind not in JUDGES and find(kind) is None]
    if unknown or not names:
        known = ", ".join([*JUDGES, *(entry.name for entry in TABLE)])
        raise ValueError(f"Expected judges from {known}, but got {', '.join(unknown) or 'none'}.")


def default_judges() -> tuple[list[str], str | None]:
    """Return the oracle and the bundled pixel judge; where that is absent, the oracle and a note that says so."""
    try:
        load_pixel_judge()
    except ValueError as error:
        return ["oracle"], f"graded by the oracle alone: {error}"
    return ["oracle", "pixel"], None
