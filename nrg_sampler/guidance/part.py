"""The part of the latents that the reward reads in one step: cheaper than all of them, and every part has its turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.frames import chosen_frames

PATCH = 2  # latents; a crop begins and ends where the patches of video transformers do


@dataclass(frozen=True)
class Part:
    """Some frames of some latents, and a rectangle of each.

    Args:
        frames: Those that are read.
        rows: In the height.
        columns: In the width.
        whole_clip: Whether all frames are cut out, and the reward itself picks those that are read.
    """

    frames: range
    rows: slice
    columns: slice
    whole_clip: bool = False

    @classmethod
    def of(cls, shape: Sequence[int], frames: str, crop: float, turn: int, whole_clip: bool = False) -> Part:
        """Choose the part whose turn it is.

        Args:
            shape: Of the latents, ``(B, C, T, H, W)``.
            frames: Which latent frames are read, as :func:`nrg_sampler.rewards.frames.read_frames` returns it.
            crop: Share of the height and of the width, above 0.
            turn: How many parts were read before; frames take turns, then places in the picture.
            whole_clip: As above.
        """
        *_, count, height, width = shape
        chosen, turn = chosen_frames(frames, count, turn)
        rows, columns = _stretches(height, crop), _stretches(width, crop)
        turn, row = divmod(turn, len(rows))
        return cls(chosen, rows[row], columns[turn % len(columns)], whole_clip)

    def cut(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor ``(..., T, H, W)``."""
        frames = slice(None) if self.whole_clip else slice(self.frames.start, self.frames.stop, self.frames.step)
        return tensor[..., frames, self.rows, self.columns]

    def conditioning(self, whole: Conditioning) -> Conditioning:
        """Return the conditioning of the part from that of the whole."""
        velocity = None if whole.velocity is None else self.cut(whole.velocity)
        if self.whole_clip:
            return replace(whole, velocity=velocity, frames=self.frames)
        return replace(whole, velocity=velocity, frame_stride=self.frames.step)

    def placed(self, part: Tensor, shape: Sequence[int]) -> Tensor:
        """Put a part ``(..., t, h, w)`` back where it was cut out; ``shape`` is that of the result, zero elsewhere."""
        whole = part.new_zeros(shape)
        self.cut(whole).copy_(part)
        return whole


def _stretches(size: int, crop: float) -> list[slice]:
    """Cover ``size`` latents by stretches of one length that begin and end at a patch and may overlap."""
    length = min(size, max(PATCH, round(crop * size / PATCH) * PATCH))
    count = math.ceil(size / length)
    gap = (size - length) / max(1, count - 1)
    starts = (min(PATCH * round(index * gap / PATCH), size - length) for index in range(count))
    return [slice(start, start + length) for start in starts]
