"""Who grades: judges, none of which may be the reward that guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.rewards.base import normalised
from nrg_sampler.shapes.oracle import grade
from nrg_sampler.shapes.scenes import Prompt, caption


class Judge(Protocol):
    """Score finished clips of the shapes world on VQ, MQ and TA, higher is better."""

    def __call__(self, clips: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return scores, shape ``(B, 3)``, of clips ``(B, 3, T, H, W)`` in ``[0, 1]``."""
        ...


def oracle() -> Judge:
    """Return the oracle: measurements of the pixels, no network."""
    return grade


def pixel() -> Judge:
    """Return the bundled pixel judge, a network that shares nothing with the reward.

    Raises:
        ValueError: If it is not installed.
    """
    judge = load_pixel_judge()

    def grades(clips: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        with torch.no_grad():
            return normalised(judge, judge(clips, [caption(prompt) for prompt in prompts]))

    return grades


def load_pixel_judge() -> Any:
    """Load the bundled pixel judge, frozen.

    Raises:
        ValueError: If it is not installed.
    """
    from nrg_sampler.evaluation.judges import PixelJudge

    return PixelJudge.from_pretrained(bundled_folder("judge"), dtype=torch.float32).eval().requires_grad_(False)


# A judge is made when it is first asked for; to add one, name it here.
JUDGES: dict[str, Callable[[], Judge]] = {"oracle": oracle, "pixel": pixel}


def panel(names: Sequence[str]) -> dict[str, Judge]:
    """Make the named judges.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = [name for name in names if name not in JUDGES]
    if unknown or not names:
        raise ValueError(f"Expected judges from {', '.join(JUDGES)}, but got {', '.join(unknown) or 'none'}.")
    return {name: JUDGES[name]() for name in dict.fromkeys(names)}
