"""The published VideoReward as a judge of finished videos, on the network that guides as ``"videoreward"`` too.

See :mod:`nrg_sampler.rewards.named.videoreward` for its files. Here frames are rounded to 8 bits where the published
code has them so, from the file and after they were resized; gradients end there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.qwen_frames import FRAME_FACTOR
from nrg_sampler.rewards.named.videoreward import VideoRewardJudge


class VideoReward:
    """Score finished videos as the published VideoReward does.

    Args:
        network: The network, which guides too.
    """

    def __init__(self, network: VideoRewardJudge) -> None:
        self.network, self.axes = network, network.axes

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        base: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> VideoReward:
        """Load the published folder.

        Args:
            folder: With ``model_config.json``, ``prompt_template.py`` and ``checkpoint-<step>``; by default the local
                cache of the Hub.
            base: Folder or Hub id of the base model, Qwen2-VL-2B-Instruct; by default what the config names, looked
                for in ``folder`` first.
            device: Where to run.
            dtype: Of the weights; bfloat16 on an accelerator, else float32.

        Raises:
            ValueError: If a file is missing or damaged, a setting is not supported, or a key is missing or too many.
        """
        name = "videoreward" if folder is None else f"videoreward:{folder}"
        network = load_named(name, base=base, device=device, dtype=dtype, download=folder is not None)
        return cls(cast(VideoRewardJudge, network))

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Score clips, one after the other.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.
            fps: Frames per second of the clips; the rate decides which frames are looked at.

        Returns:
            VQ, MQ and TA in published units, shape ``(B, 3)``.

        Raises:
            ValueError: If a clip has fewer than two frames.
        """
        return torch.stack([self._score(clip, prompt, fps) for clip, prompt in zip(clips, prompts, strict=True)])

    def frames_seen(self, total: int, fps: float) -> int:
        """Return how many of ``total`` frames at ``fps`` are looked at, evenly spread."""
        return len(self.network.looked_at(total, fps))

    def _score(self, clip: Tensor, prompt: str, fps: float) -> Tensor:
        if clip.shape[1] < FRAME_FACTOR:
            raise ValueError(f"Expected a video of {FRAME_FACTOR} frames or more, but got {clip.shape[1]}.")
        levels = (clip.transpose(0, 1) * 255).round().to(torch.uint8)  # (T, 3, H, W)
        return self.network.score(levels, prompt, fps).float().cpu()
