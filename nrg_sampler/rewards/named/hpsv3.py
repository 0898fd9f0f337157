"""HPSv3: Qwen2-VL-7B with a head that is read at one token, for the preference of a picture and its uncertainty.

The published code resizes by Pillow, or for gradients bilinearly without anti-aliasing; here it is bicubic with
anti-aliasing for both, as Pillow does it.

References:
    [1] Ma et al., 2025, arXiv:2508.03789 (HPSv3).
    [2] github.com/MizzenAI/HPSv3, the published inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.named.judge import check_frames, require_one_each
from nrg_sampler.rewards.named.qwen import IMAGE, PROMPT_PLACE, QwenJudge
from nrg_sampler.rewards.named.qwen_frames import patchified, resized
from nrg_sampler.rewards.published import UNUSED, current_name, load_state

TOKENS = ("<|Reward|>",)
QUESTION = ("INSTRUCTION", "prompt_with_special_token")
PARTS = (PROMPT_PLACE, *TOKENS)  # of the question, in their order
PIXELS = 256 * 28 * 28  # the fewest and the most


def new_head(features: int) -> nn.Sequential:
    """Return the head, by the numbers of whose layers it is published."""
    return nn.Sequential(
        nn.Linear(features, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


class HpsV3Judge(QwenJudge):
    """Score frames as the published HPSv3 does, and average over those of a clip."""

    tokens, media = TOKENS, IMAGE

    def cast(self, dtype: torch.dtype) -> HpsV3Judge:
        """Compute in a precision; the head in float32 at least, as published."""
        self.model.to(dtype)
        self.head.to(torch.promote_types(dtype, torch.float32))
        return self

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score clips.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; the gradient reaches them.
            prompts: One for each clip.

        Returns:
            The mean preference of its frames, shape ``(B, 1)``.

        Raises:
            ValueError: If ``frames`` are none, or the prompts are not one for each clip.
        """
        return self.distribution(frames, prompts)[..., 0].mean(dim=1, keepdim=True)

    def distribution(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the normal distribution of each frame's preference.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.

        Returns:
            Its mean and standard deviation, shape ``(B, T, 2)``, float32 at least.

        Raises:
            ValueError: As :meth:`forward` does.
        """
        check_frames(frames)
        require_one_each(prompts, frames)
        clips = frames.to(self.device).transpose(1, 2) * 255
        rows = [
            torch.stack([self.score(frame[None], prompt) for frame in clip])
            for clip, prompt in zip(clips, prompts, strict=True)
        ]
        mean, log_deviation = torch.stack(rows).unbind(dim=-1)
        return torch.stack([mean, log_deviation.exp()], dim=-1)

    def score(self, levels: Tensor, prompt: str) -> Tensor:
        """Score one frame, levels from 0 to 255 of shape ``(1, 3, H, W)``; returns the head's output, ``(2,)``."""
        patches, grid = patchified(resized(levels, PIXELS, PIXELS))
        hidden = self.read(patches, grid, prompt)
        scores: Tensor = self.head(hidden.to(next(self.head.parameters()).dtype))[0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


def weights_of(file: Path) -> dict[str, Tensor]:
    """Return the published weights by their current names, without those that only write text."""
    named = {current_name(key): value for key, value in load_state(file).items()}
    return {name: value for name, value in named.items() if not UNUSED.search(name)}
