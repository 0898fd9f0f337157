"""Frames as a vision tower wants them, in torch, so that the gradient reaches the pixels.

The published preprocessing works on 8-bit pictures, which Pillow resizes: it rounds to whole levels. Here nothing is
rounded, for the gradient's sake; the filter is the same, bicubic with anti-aliasing, and overshoots are clipped too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.rewards.named.table import Fit

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # SigLIP's mean and standard deviation


@dataclass(frozen=True)
class Preprocessing:
    """Resize to a square and normalise.

    Args:
        size: Side of the square.
        fit: ``"crop"`` brings the shorter side to ``size`` and takes the centre, ``"pad"`` brings the longer side
            there and adds black bars, ``"stretch"`` brings both there.
        mean: Of the channels red, green and blue.
        std: Their standard deviation.
    """

    size: int
    fit: Fit = "crop"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, pictures: Tensor) -> Tensor:
        """Prepare pictures ``(N, 3, H, W)`` in ``[0, 1]``, in float32 at least; returns ``(N, 3, size, size)``."""
        pictures = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
        height, width = self.resized(pictures.shape[-2], pictures.shape[-1])
        if (height, width) != tuple(pictures.shape[-2:]):
            pictures = functional.interpolate(pictures, (height, width), mode="bicubic", antialias=True)
        pictures = pictures.clamp(0, 1)  # bicubic overshoots; 8 bits cut that off
        if self.fit == "crop":
            top, left = (height - self.size) // 2, (width - self.size) // 2
            pictures = pictures[..., top : top + self.size, left : left + self.size]
        elif self.fit == "pad":
            top, left = (self.size - height) // 2, (self.size - width) // 2
            pictures = functional.pad(pictures, (left, self.size - width - left, top, self.size - height - top))
        mean, std = (pictures.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pictures - mean) / std

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which a picture is resized, before it is cropped or padded."""
        if self.fit == "stretch":
            return self.size, self.size
        short, long = sorted((height, width))
        if self.fit == "crop":
            short, long = self.size, int(self.size * long / short)
        else:
            short, long = max(1, round(short * (self.size / long))), self.size
        return (short, long) if height <= width else (long, short)
