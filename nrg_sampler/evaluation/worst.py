"""The worst cases: where guidance lost most, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.evaluation.gains import gains
from nrg_sampler.evaluation.grading import ORACLE, Graded, column, tabulate
from nrg_sampler.shapes.oracle import AXES, grade
from nrg_sampler.shapes.scenes import Prompt, caption
from nrg_sampler.video import GAP, GAP_COLOR, Frames, frame_strip, to_uint8

WORST = 20
COLUMNS = 2  # of pairs on the sheet
LINE = 16  # pixels of a line of text


@dataclass(frozen=True)
class Case:
    """A prompt whose guided clip lost.

    Args:
        index: Which prompt, and the seed.
        prompt: Its text.
        clips: The unguided and the guided one, shape ``(2, 3, T, H, W)``, in ``[0, 1]``.
        change: By the oracle on each axis, guided less unguided, shape ``(3,)``.
    """

    index: int
    prompt: str
    clips: Tensor
    change: Tensor


def worst_indices(grades: Sequence[Graded], arm: str, baseline: str, count: int = WORST) -> list[int]:
    """Return the prompts on which ``arm`` loses most to ``baseline``, worst first.

    Args:
        grades: Of both arms.
        arm: Name of the guided arm.
        baseline: Name of the other one.
        count: How many prompts, at most.
    """
    table = tabulate(grades)
    shared = sorted(set(table[arm]) & set(table[baseline]))
    scores, base = (column([table[name][index] for index in shared], ORACLE) for name in (arm, baseline))
    order = gains(scores, base)[:, -1].argsort()  # the mean of the axes, in their spreads
    return [shared[place] for place in order[:count].tolist()]


def sample_cases(
    sampler: ArmSampler, arm: Arm, baseline: Arm, prompts: Sequence[Prompt], indices: Sequence[int], batch: int = 20
) -> list[Case]:
    """Sample the clips of some prompts again and grade what will be seen.

    Args:
        sampler: Samples both arms.
        arm: The guided arm.
        baseline: The unguided one.
        prompts: Of the whole evaluation.
        indices: Which of them, as well as their seeds.
        batch: Clips sampled together.
    """
    cases = []
    for start in range(0, len(indices), batch):
        chosen = list(indices[start : start + batch])
        asked = [prompts[index] for index in chosen]
        before, after = (sampler.sample(one, asked, chosen).clips for one in (baseline, arm))
        change = grade(after, asked) - grade(before, asked)
        for row, index in enumerate(chosen):
            pair = before.new_empty(2, *before.shape[1:])
            pair[0], pair[1] = before[row], after[row]
            cases.append(Case(index, caption(asked[row]), pair, change[row]))
    return cases


def contact_sheet(cases: Sequence[Case]) -> Frames:
    """Lay cases out: the prompt, the unguided frames over the guided ones, and what the oracle makes of the change.

    Returns:
        One picture, shape ``(H, W, 3)``.
    """
    panels = [_panel(number, case) for number, case in enumerate(cases, start=1)]
    height, width, _ = panels[0].shape
    rows = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    sheet = np.full(
        (rows * (height + 2 * GAP) + GAP, columns * (width + 2 * GAP) + GAP, 3), GAP_COLOR, dtype=np.uint8
    )  # fmt: skip
    for place, panel in enumerate(panels):
        top, left = (place // columns) * (height + 2 * GAP) + GAP, (place % columns) * (width + 2 * GAP) + GAP
        sheet[top : top + height, left : left + width] = panel
    return sheet


def _panel(number: int, case: Case) -> Frames:
    from PIL import Image, ImageDraw, ImageFont

    strips = frame_strip([to_uint8(clip.permute(1, 2, 3, 0).numpy()) for clip in case.clips])  # rows: before, after
    picture = np.full((strips.shape[0] + 2 * (LINE + 2), strips.shape[1], 3), GAP_COLOR, dtype=np.uint8)
    picture[LINE + 2 : -LINE - 2] = strips
    image = Image.fromarray(picture)
    changes = "   ".join(f"{axis} {value:+.3f}" for axis, value in zip(AXES, case.change.tolist(), strict=True))
    for top, text in (
        (0, f"{number}. {case.prompt} (prompt {case.index})"),
        (picture.shape[0] - LINE, f"guided below: {changes}"),
    ):
        ImageDraw.Draw(image).text((0, top), text, fill=0, font=ImageFont.load_default(size=LINE - 4))
    return np.asarray(image)
