"""Real video files as the clips a reward is trained on: which frames, at which size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nrg_sampler.training.preferences import FPS_TOLERANCE, PreferencePair, PreferenceTable
from nrg_sampler.video.reading import UnreadableVideoError, VideoFile

SAME_FPS = 0.002  # relative: 29.97 frames a second are sampled as 30, one by one


class UnreadableClipError(ValueError):
    """A video file that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class ClipSettings:
    """How a video file becomes a clip.

    Frame ``k`` is the one that is shown ``k / fps`` seconds after the first, however irregular the file's rate; where
    the two rates differ by rounding alone, as 29.97 and 30 do, the file's frames are taken one by one. Every frame is
    scaled, with antialiasing, until it just covers the size, and cropped around the centre.

    Args:
        height: Of the clip, in pixels.
        width: Likewise.
        num_frames: Frames of the clip; a file with fewer cannot be used.
        fps: Frames a second of the clip; a file with fewer cannot be used.

    Raises:
        ValueError: If a number is not above 0.
    """

    height: int
    width: int
    num_frames: int
    fps: float

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Expected `{name}` to be above 0, but got {value}.")


def read_clip(file: Path, settings: ClipSettings) -> Tensor:
    """Decode a video file.

    Returns:
        The clip, shape ``(3, T, H, W)``, float32 in ``[0, 1]``.

    Raises:
        UnreadableClipError: If it cannot be decoded, is too short or has too few frames a second.
    """
    with _reading(file):
        video = VideoFile(file)
        _check_fps(file, video.fps, settings)
        frames = [_resized(picture, settings) for picture in video.at(_times(video.fps, settings))]
    if len(frames) < settings.num_frames:
        raise UnreadableClipError(
            f"{file.name} is too short: {len(frames)} of {settings.num_frames} frames at {settings.fps:g} a second"
        )
    return torch.stack(frames, dim=1)


def inspect_pairs(table: PreferenceTable, settings: ClipSettings) -> Iterator[int]:
    """Open every file of a table once, move the pairs with unusable ones to the bad rows; yields how many are done."""
    reasons: dict[Path, tuple[float, str | None]] = {}
    for clip in dict.fromkeys(path for pair in table.pairs for path in (pair.first, pair.second)):
        try:
            reasons[clip] = _inspect(clip, settings), None
        except UnreadableClipError as reason:
            reasons[clip] = math.nan, str(reason)
        yield len(reasons)

    def is_bad(pair: PreferencePair) -> str | None:
        for clip, stated in zip((pair.first, pair.second), pair.fps, strict=True):
            fps, reason = reasons[clip]
            if reason is not None:
                return reason
            if abs(stated - fps) > FPS_TOLERANCE * fps:
                return f"states {stated:g} frames a second for {clip.name}, which has {fps:g}"
        return None

    table.keep(is_bad)


def _inspect(file: Path, settings: ClipSettings) -> float:
    """Frames a second of a file that is long enough and whose first frame can be decoded."""
    with _reading(file):
        video = VideoFile(file)
        _check_fps(file, video.fps, settings)
        if video.seconds <= _times(video.fps, settings)[-1]:
            raise UnreadableClipError(
                f"{file.name} is too short: {video.seconds:g} seconds for {settings.num_frames} frames at "
                f"{settings.fps:g} a second"
            )
        next(video.at([0.0]))
    return video.fps


def _times(fps: float, settings: ClipSettings) -> list[float]:
    """When the frames of a clip are shown in a file with ``fps`` frames a second."""
    rate = fps if abs(fps - settings.fps) < SAME_FPS * settings.fps else settings.fps
    return [index / rate for index in range(settings.num_frames)]


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what is wrong with a file into the reason of a clip."""
    try:
        yield
    except UnreadableVideoError as error:
        raise UnreadableClipError(f"{file.name} cannot be decoded ({error.reason})") from error


def _check_fps(file: Path, fps: float, settings: ClipSettings) -> None:
    if fps < settings.fps * (1 - FPS_TOLERANCE):
        raise UnreadableClipError(
            f"{file.name} has {fps:g} frames a second, fewer than the {settings.fps:g} to sample"
        )


def _resized(picture: NDArray[np.uint8], settings: ClipSettings) -> Tensor:
    """One frame ``(3, H, W)``, scaled to cover the size and cut to it around the centre."""
    height, width, _ = picture.shape
    pixels = torch.from_numpy(picture)
    factor = max(settings.height / height, settings.width / width)
    covering = max(settings.height, round(height * factor)), max(settings.width, round(width * factor))
    frame = pixels.permute(2, 0, 1)[None].float() / 255
    if covering != (height, width):
        frame = functional.interpolate(frame, covering, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (covering[0] - settings.height) // 2, (covering[1] - settings.width) // 2
    return frame[0, :, top : top + settings.height, left : left + settings.width]
