"""Real video files as the clips a reward is trained on: which frames, at which size."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nrg_sampler.training.preferences import FPS_TOLERANCE, PreferencePair, PreferenceTable


class UnreadableClipError(ValueError):
    """A video file that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class ClipSettings:
    """How a video file becomes a clip.

    Frame ``k`` is the one nearest to ``k / fps`` seconds, from the start of the file. Every frame is scaled, with
    antialiasing, until it just covers the size, and cropped around the centre.

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
    frames: list[Tensor] = []
    with _decoded(file) as video:
        _check_fps(file, video.fps, settings)
        wanted = _wanted(video.fps, settings)
        for index, picture in enumerate(video.pictures):
            frames += [_resized(picture, settings)] * wanted.count(index)
            if index >= wanted[-1]:
                break
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
    """Frames a second of a file whose first frame can be decoded and that is long enough by its header."""
    with _decoded(file) as video:
        _check_fps(file, video.fps, settings)
        if round(min(video.seconds, 1e6) * video.fps) <= _wanted(video.fps, settings)[-1]:
            raise UnreadableClipError(
                f"{file.name} is too short: {video.seconds:g} seconds for {settings.num_frames} frames at "
                f"{settings.fps:g} a second"
            )
        return video.fps


def _wanted(fps: float, settings: ClipSettings) -> list[int]:
    """Which frames of a file with ``fps`` frames a second are sampled."""
    return [math.floor(index * fps / settings.fps + 0.5) for index in range(settings.num_frames)]


@dataclass(frozen=True)
class _Video:
    """A file that is being decoded; ``seconds`` is infinite where the header does not state it."""

    fps: float
    seconds: float
    pictures: Iterator[NDArray[np.uint8]]


@contextmanager
def _decoded(file: Path) -> Iterator[_Video]:
    """Decode a file frame by frame, each ``(H, W, 3)``, for as long as the block lasts."""
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-hide_banner",
        "-i",
        str(file),
        "-f",
        "image2pipe",
        "-c:v",
        "ppm",
        "-",
    ]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            pictures = _pictures(process.stdout)
            first = next(pictures, None)
            log.seek(0)
            text = log.read().decode(errors="replace")  # about the input, once there is output
            rate = re.search(r"Video:.* ([\d.]+) fps", text)
            if first is None or rate is None:
                reason = text.strip().splitlines()[-1] if text.strip() else "no message from ffmpeg"
                raise UnreadableClipError(f"{file.name} cannot be decoded ({reason[:120]})")
            length = re.search(r"Duration: (\d+):(\d+):([\d.]+)", text)
            seconds = (
                sum(float(part) * unit for part, unit in zip(length.groups(), (3600, 60, 1), strict=True))
                if length
                else math.inf
            )
            yield _Video(float(rate[1]), seconds, itertools.chain([first], pictures))
        finally:
            process.kill()


def _pictures(stream: Any) -> Iterator[NDArray[np.uint8]]:
    """PPM pictures one after another: three lines of text, then the pixels."""
    while stream.readline().strip() == b"P6":
        width, height = map(int, stream.readline().split())
        stream.readline()
        pixels = stream.read(height * width * 3)
        if len(pixels) < height * width * 3:
            return
        yield np.frombuffer(pixels, dtype=np.uint8).reshape(height, width, 3)


def _check_fps(file: Path, fps: float, settings: ClipSettings) -> None:
    if fps < settings.fps * (1 - FPS_TOLERANCE):
        raise UnreadableClipError(
            f"{file.name} has {fps:g} frames a second, fewer than the {settings.fps:g} to sample"
        )


def _resized(picture: NDArray[np.uint8], settings: ClipSettings) -> Tensor:
    """One frame ``(3, H, W)``, scaled to cover the size and cut to it around the centre."""
    height, width, _ = picture.shape
    pixels = torch.from_numpy(picture.copy())
    factor = max(settings.height / height, settings.width / width)
    covering = max(settings.height, round(height * factor)), max(settings.width, round(width * factor))
    frame = pixels.permute(2, 0, 1)[None].float() / 255
    if covering != (height, width):
        frame = functional.interpolate(frame, covering, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (covering[0] - settings.height) // 2, (covering[1] - settings.width) // 2
    return frame[0, :, top : top + settings.height, left : left + settings.width]
