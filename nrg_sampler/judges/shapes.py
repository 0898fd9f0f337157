"""The judges of the bundled world: the oracle that measures pixels, and the trained pixel judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.base import normalised

MOST_PIXELS = 3 * 2**20  # of a file, 48 frames of 256 x 256; both judges need some hundred bytes for each


class OracleJudge:
    """Measurements of the pixels of a clip of the shapes world, each axis from 0 to 1; no network."""

    axes: tuple[str, ...] = ("VQ", "MQ", "TA")
    most_pixels = MOST_PIXELS

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips; the rate does not matter.

        Raises:
            ValueError: If a prompt is not of that world, or the clips are too short.
        """
        from nrg_sampler.shapes.oracle import grade
        from nrg_sampler.shapes.scenes import parse

        parsed = [parse(prompt) for prompt in prompts]
        known = [prompt for prompt in parsed if prompt is not None]
        if len(known) < len(parsed):
            raise ValueError(
                f"Expected a prompt of the bundled world for the oracle, but got {prompts[parsed.index(None)]!r}; "
                "name another judge for other videos."
            )
        return grade(clips, known)


class PixelClipJudge:
    """A trained judge of pixels, which needs no rate; grades in its standard deviations.

    Args:
        judge: A ``PixelJudge``.
    """

    most_pixels = MOST_PIXELS

    def __init__(self, judge: Any) -> None:
        self.axes, self._judge = judge.axes, judge

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips.

        Raises:
            ValueError: If a prompt has words that the judge never saw.
        """
        device = next(self._judge.parameters()).device
        return normalised(self._judge, self._judge(clips.to(device), prompts)).cpu()


class GuidingPixelJudge(nn.Module):
    """The bundled judge of pixels as one that guides, for measurements of such rewards.

    A clip that it guided is not for it to grade.
    """

    def __init__(self) -> None:
        super().__init__()
        self.judge = load_pixel_judge()
        self.axes, self.mean, self.std = self.judge.axes, self.judge.mean, self.judge.std

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Grade clips ``(B, 3, T, H, W)`` in ``[0, 1]``; returns raw grades, shape ``(B, axes)``."""
        grades: Tensor = self.judge(frames, prompts)
        return grades


def load_pixel_judge(folder: str | Path | None = None) -> Any:
    """Load a pixel judge, frozen; the bundled one by default.

    Raises:
        ValueError: If there is none.
    """
    from nrg_sampler.checkpoints import bundled_folder, readable
    from nrg_sampler.shapes.judge import PixelJudge

    folder = Path(folder) if folder else bundled_folder("judge")
    if not (folder / "config.json").is_file():
        raise ValueError(f"Expected a pixel judge in {folder}, but found none; name the folder as pixel:FOLDER.")
    with readable(folder):
        return PixelJudge.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
