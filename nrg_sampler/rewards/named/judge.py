"""What all judges of frames have in common, and those that score each frame and average over a clip."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor  # has a shape and no pixels, for counting

from nrg_sampler.rewards.named.preprocessing import Preprocessing
from nrg_sampler.rewards.named.table import Entry


class NamedJudge(nn.Module):
    """A frozen judge of frames.

    Args:
        entry: Its row of the table.
        model: Its backbone, of which the first weight says where and how it computes.
    """

    def __init__(self, entry: Entry, model: Any) -> None:
        super().__init__()
        self.entry, self.model = entry, model
        self.axes, self.mean, self.std = entry.axes, entry.mean, entry.std
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever holds the judge is switched to."""
        super().train(False)
        return self

    def cast(self, dtype: torch.dtype) -> Self:
        """Compute in a precision."""
        return self.to(dtype)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]


class FrameJudge(NamedJudge):
    """Score the frames of clips by a frozen vision tower.

    Args:
        entry: Its row of the table.
        model: The tower.
        preprocessing: What is done to a frame first.
    """

    def __init__(self, entry: Entry, model: Any, preprocessing: Preprocessing) -> None:
        super().__init__(entry, model)
        self.preprocessing = preprocessing

    def over_frames(self, frames: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        """Score clips by the mean over their frames.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            score: Maps prepared frames ``(B * T, 3, size, size)``, those of a clip next to each other, to
                ``(B * T, axes)``.

        Returns:
            Shape ``(B, axes)``, float32 at least.

        Raises:
            ValueError: If ``frames`` are none.
        """
        check_frames(frames)
        batch, channels, length, height, width = frames.shape
        pictures = frames.transpose(1, 2).reshape(batch * length, channels, height, width)
        prepared = self.preprocessing(pictures.to(self.device)).to(self.dtype)
        scores = score(prepared)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores.view(batch, length, -1).mean(dim=1)


def require_one_each(prompts: Sequence[str], frames: Tensor) -> None:
    """Refuse prompts that are not one for each clip.

    Raises:
        ValueError: If they are a single text, or too few or too many.
    """
    if isinstance(prompts, str) or len(prompts) != len(frames):
        got = "one text" if isinstance(prompts, str) else f"{len(prompts)}"
        raise ValueError(f"Expected {len(frames)} prompts, one for each clip, but got {got}; pass a list.")


def warn_of_truncation(entry: Entry, most: int, longest: int) -> None:
    """Warn that a prompt of ``longest`` tokens is cut to ``most``; the caller does so once."""
    warnings.warn(
        f"{entry.name} reads {most} tokens of a prompt, and one has {longest}; the rest is not scored.", stacklevel=3
    )


def check_frames(frames: Tensor) -> None:
    """Refuse what are no frames in ``[0, 1]``.

    Raises:
        ValueError: If the shape is not ``(B, 3, T, H, W)``, the numbers are not floating point or not finite.
    """
    if frames.ndim != 5 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"Expected frames of shape (B, 3, T, H, W), but got {tuple(frames.shape)}; a picture is a clip with T = 1."
        )
    if not frames.is_floating_point():
        raise ValueError(f"Expected frames as numbers in [0, 1], but got {frames.dtype}; divide 8-bit levels by 255.")
    if not isinstance(frames, FakeTensor) and not bool(torch.isfinite(frames).all()):
        raise ValueError(
            "Expected finite frames, but some pixels are NaN or infinite; decode in float32, or guide less strongly."
        )
