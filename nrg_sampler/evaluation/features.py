"""What guidance may spoil and no judge may notice: stillness, grain, glare and sameness, read off the pixels.

Every function takes clips ``(B, C, T, H, W)`` in ``[0, 1]`` and returns one number a clip, shape ``(B,)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

STATIC = 0.1  # of the median motion of unguided clips: less is a static clip
FINE = 0.25  # cycles a pixel, half of the highest: above it there is grain rather than form
POOLED = 4  # pixels a side that a difference between clips is averaged over first


def motion(clips: Tensor) -> Tensor:
    """Return the mean absolute change from frame to frame."""
    return clips.diff(dim=2).abs().mean(dim=(1, 2, 3, 4))


def high_frequency(clips: Tensor) -> Tensor:
    """Return the share of the spatial variance in frequencies above ``FINE``, in [0, 1]."""
    power = torch.fft.fft2(clips.float()).abs().square()  # (B, C, T, H, W)
    rows, columns = (torch.fft.fftfreq(size, device=clips.device) for size in clips.shape[-2:])
    radius = (rows[:, None].square() + columns[None].square()).sqrt()
    fine, whole = (power[..., chosen].sum(dim=(1, 2, 3)) for chosen in (radius > FINE, radius > 0))
    share: Tensor = fine / whole.clamp(min=1e-12)
    return share


def saturation(clips: Tensor) -> Tensor:
    """Return the mean distance between the strongest and the weakest colour channel."""
    return (clips.amax(dim=1) - clips.amin(dim=1)).mean(dim=(1, 2, 3))


def diversity(clips: Tensor) -> float:
    """Return the mean distance between clips of one prompt and different seeds.

    The distance is the root mean square difference of clips averaged over squares of ``POOLED`` pixels: large
    where place, colour and background differ, blind to grain.

    Args:
        clips: At least two clips, shape ``(B, C, T, H, W)``.
    """
    coarse = functional.avg_pool3d(clips.float(), (1, POOLED, POOLED)).flatten(1)
    return float(functional.pdist(coarse).mean() / coarse.shape[1] ** 0.5)


FEATURES = {"motion": motion, "high_frequency": high_frequency, "saturation": saturation}
