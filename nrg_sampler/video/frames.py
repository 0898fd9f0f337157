"""Frames to files and back: H.264 videos that play in a browser, frame strips, one hash for both.

Everywhere here ``frames`` is a uint8 array of shape ``(T, H, W, 3)``, RGB.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nrg_sampler.files import replacing, writable_file
from nrg_sampler.video.reading import Frames, VideoFile

VIEWABLE_SIDE = 256  # pixels; a smaller video is enlarged to about this when written
GAP = 8  # pixels between pictures that stand side by side
GAP_COLOR = 255
STRIP_FRAMES = 7
ENCODING = (
    *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "12", "-movflags", "+faststart"),
    "-vf",
    "scale=out_color_matrix=bt709:out_range=tv,setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709",
)


def to_uint8(frames: ArrayLike) -> Frames:
    """Turn a pipeline's frames into bytes.

    Args:
        frames: One video, shape ``(T, H, W, 3)``: floats in ``[0, 1]`` (diffusers' ``output_type="np"``) or uint8.

    Returns:
        Frames, uint8, same shape.

    Raises:
        ValueError: If the shape is another one, or a float is NaN or infinite.
    """
    array: NDArray[Any] = np.asarray(frames)
    if array.ndim != 4 or array.shape[-1] != 3 or not array.size:
        raise ValueError(f"Expected frames of shape (T, H, W, 3), but got {array.shape}.")
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise ValueError("Expected finite frames, but the video contains NaN or infinite values.")
    pixels: Frames = np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def frames_sha256(frames: Frames) -> str:
    """Hash the raw bytes of the frames; two videos are identical exactly when these agree."""
    return hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()


def enlarge(frames: Frames, side: int = VIEWABLE_SIDE) -> Frames:
    """Repeat pixels by the whole factor that brings the longer side to about ``side``; never shrink.

    Args:
        frames: Shape ``(T, H, W, 3)``.
        side: Wanted length of the longer side, in pixels.

    Returns:
        Shape ``(T, k*H, k*W, 3)``.
    """
    factor = max(1, round(side / max(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(videos: Sequence[Frames], gap: int = GAP) -> Frames:
    """Put videos of one size next to each other, first one leftmost.

    Args:
        videos: Each of shape ``(T, H, W, 3)``.
        gap: White pixels between neighbours.

    Returns:
        Shape ``(T, H, n*W + (n-1)*gap, 3)``.

    Raises:
        ValueError: If the shapes differ.
    """
    shapes = {video.shape for video in videos}
    if len(shapes) != 1:
        raise ValueError(f"Expected videos of one size and length, but got {sorted(shapes)}.")
    count, height, _, channels = shapes.pop()
    bar = np.full((count, height, gap, channels), GAP_COLOR, dtype=np.uint8)
    pieces = [piece for video in videos for piece in (bar, video)]
    return np.concatenate(pieces[1:], axis=2)


def frame_strip(videos: Sequence[Frames], columns: int = STRIP_FRAMES, gap: int = GAP) -> Frames:
    """Lay out evenly spaced frames as a picture, one row for each video.

    Args:
        videos: Each of shape ``(T, H, W, 3)``.
        columns: Frames in a row, at most; the first and the last frame are always among them.
        gap: White pixels between neighbours.

    Returns:
        One picture, shape ``(n*H + (n-1)*gap, columns*W + (columns-1)*gap, 3)``.
    """
    rows = []
    for video in videos:
        picks = np.unique(np.linspace(0, len(video) - 1, columns).round().astype(int))
        rows.append(side_by_side([video[index : index + 1] for index in picks], gap)[0])  # (H, columns*W + gaps, 3)
    bar = np.full((gap, rows[0].shape[1], 3), GAP_COLOR, dtype=np.uint8)
    pieces = [piece for row in rows for piece in (bar, row)]
    return np.concatenate(pieces[1:], axis=0)


def write_mp4(frames: Frames, path: Path, fps: float) -> None:
    """Write an H.264 video that browsers play: yuv420p, even sides, index at the front, BT.709 colours.

    Args:
        frames: Shape ``(T, H, W, 3)``. An odd side is padded by repeating its last row or column.
        path: The file to write; it appears when it is complete.
        fps: Frames per second.

    Raises:
        ValueError: If ``path`` does not end in ``.mp4`` or ``fps`` is not positive.
        OSError: If the file cannot be written, for example because the disk is full.
    """
    import imageio_ffmpeg

    if path.suffix.lower() != ".mp4":
        raise ValueError(f"Expected a file name that ends in .mp4, but got {path.name}.")
    if not fps > 0:
        raise ValueError(f"Expected `fps` to be above 0, but got {fps}.")
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    with replacing(path) as partial:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-", "-an", *ENCODING]
        done = subprocess.run([*command, f"file:{partial}"], input=frames.tobytes(), capture_output=True)
        if done.returncode:
            raise OSError(f"ffmpeg could not write {path}: {done.stderr.decode(errors='replace').strip()}")


def writable_mp4(path: Path) -> Path:
    """Prove that a video can be written at ``path``, by writing one beside it, before anything is sampled.

    Raises:
        ValueError: If the file cannot be written or there is no encoder.
    """
    writable_file(path)
    trial = path.with_stem(f"{path.stem}.{os.getpid()}.trial")
    try:
        write_mp4(np.zeros((1, 16, 16, 3), dtype=np.uint8), trial, fps=1)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"Expected a place and an encoder for a video, but {path} cannot be written: {error}; choose another "
            "folder, or install imageio-ffmpeg with its ffmpeg."
        ) from error
    finally:
        trial.unlink(missing_ok=True)
    return path


def read_mp4(path: Path) -> tuple[Frames, float]:
    """Read all frames of a video file, upright and with square pixels.

    At an irregular frame rate, frame ``k`` is the one that is shown ``k / fps`` seconds after the first; ``fps`` is
    the average then, so that number and rate give the true length.

    Returns:
        Frames of shape ``(T, H, W, 3)``, and frames per second.

    Raises:
        UnreadableVideoError: If there is no such file or it is not a video, a ValueError.
    """
    video = VideoFile(path)
    return read_frames(video, video.even_times), video.fps


def read_frames(video: VideoFile, times: Sequence[float], size: tuple[int, int] | None = None) -> Frames:
    """Read the frames of a file that are shown at some times, see :meth:`nrg_sampler.video.reading.VideoFile.at`.

    Returns:
        Shape ``(T, H, W, 3)``.
    """
    height, width = size or video.size
    frames: Frames = np.empty((len(times), height, width, 3), dtype=np.uint8)
    count = 0
    for count, picture in enumerate(video.at(times, (height, width)), start=1):
        frames[count - 1] = picture
    return frames[:count]


def write_png(picture: Frames, path: Path) -> None:
    """Write one picture of shape ``(H, W, 3)`` as PNG."""
    from PIL import Image

    with replacing(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
