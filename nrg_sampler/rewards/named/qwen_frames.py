"""Frames as Qwen2-VL wants them, in torch, so that the gradient reaches the pixels.

Resize to sides that are whole tokens, bicubic with anti-aliasing; rescale; normalise as CLIP does; cut into patches of
14 pixels and two frames. Frames of 8 bits are rounded to whole levels after they were resized, as the published code
does it with files. Others are not rounded, for the gradient's sake.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.rewards.named.preprocessing import CLIP_MEAN, CLIP_STD

FRAME_FACTOR = 2  # the vision tower reads frames in pairs
FEWEST_FRAMES, MOST_FRAMES = 4, 768
PATCH, MERGE = 14, 2  # pixels a patch, patches a token to each side
FEWEST_PIXELS = 128 * 28 * 28  # of a frame of a video


def sampled(total: int, fps: float, data: Mapping[str, Any]) -> list[int]:
    """Return which of ``total`` frames are looked at: an even number at the published rate, evenly spread.

    Args:
        total: Frames of the video.
        fps: Their rate.
        data: ``fps``, the wanted rate, or ``num_frames``.

    Raises:
        ValueError: If the video has fewer than two frames.
    """
    if total < FRAME_FACTOR:
        raise ValueError(f"Expected a video of {FRAME_FACTOR} frames or more, but got {total}.")
    if data.get("num_frames") is not None:
        count = round(data["num_frames"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        most = min(MOST_FRAMES, total) // FRAME_FACTOR * FRAME_FACTOR
        wanted = min(max(total / fps * float(data["fps"]), FEWEST_FRAMES), most)
        count = round(wanted / FRAME_FACTOR) * FRAME_FACTOR
    return [int(index) for index in torch.linspace(0, total - 1, min(count, total)).round()]


def resized(frames: Tensor, most_pixels: int, fewest_pixels: int = FEWEST_PIXELS) -> Tensor:
    """Resize frames to sides that are whole tokens, within the published limits.

    Args:
        frames: Levels from 0 to 255, shape ``(T, 3, H, W)``, uint8 or floating point.
        most_pixels: Of a frame.
        fewest_pixels: Likewise.

    Returns:
        Of the same type.
    """
    height, width = frame_size(frames.shape[-2], frames.shape[-1], most_pixels, fewest_pixels)
    if (height, width) == frames.shape[-2:]:
        return frames
    levels = frames.to(torch.promote_types(frames.dtype, torch.float32))
    levels = functional.interpolate(levels, (height, width), mode="bicubic", antialias=True).clamp(0, 255)
    return levels if frames.is_floating_point() else levels.round().to(frames.dtype)


def frame_size(height: int, width: int, most_pixels: int, fewest_pixels: int = FEWEST_PIXELS) -> tuple[int, int]:
    """Return the nearest sides that are multiples of 28, with the aspect kept and the area within its limits."""
    unit = PATCH * MERGE
    sides = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if math.prod(sides) > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        sides = [max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width)]
    elif math.prod(sides) < fewest_pixels:
        grow = math.sqrt(fewest_pixels / (height * width))
        sides = [math.ceil(side * grow / unit) * unit for side in (height, width)]
    return sides[0], sides[1]


def patchified(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut frames into the normalised patches of Qwen2-VL.

    Args:
        frames: Levels from 0 to 255, shape ``(T, 3, H, W)``, sides multiples of 28; the last frame is repeated if
            ``T`` is odd.

    Returns:
        Patches, shape ``(N, 3 * 2 * 14 * 14)``, and their grid in time, height and width.
    """
    if len(frames) % FRAME_FACTOR:
        frames = torch.cat([frames, frames[-1:]])
    levels = frames.to(torch.promote_types(frames.dtype, torch.float32))
    mean, std = (levels.new_tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (levels / 255 - mean) / std
    grid = (len(frames) // FRAME_FACTOR, frames.shape[2] // PATCH, frames.shape[3] // PATCH)
    blocks = pixels.reshape(
        grid[0], FRAME_FACTOR, 3, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH
    )  # the patches of one token follow each other
    patches = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1)
    return patches, grid
