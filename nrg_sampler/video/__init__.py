"""Video files and frames: read as data, written so that a browser plays them, laid out as pictures."""

from __future__ import annotations

from nrg_sampler.video.frames import (
    GAP,
    GAP_COLOR,
    enlarge,
    frame_strip,
    frames_sha256,
    read_frames,
    read_mp4,
    side_by_side,
    to_uint8,
    writable_mp4,
    write_mp4,
    write_png,
)
from nrg_sampler.video.reading import Frames, UnreadableVideoError, VideoFile

__all__ = [
    "GAP",
    "GAP_COLOR",
    "Frames",
    "UnreadableVideoError",
    "VideoFile",
    "enlarge",
    "frame_strip",
    "frames_sha256",
    "read_frames",
    "read_mp4",
    "side_by_side",
    "to_uint8",
    "writable_mp4",
    "write_mp4",
    "write_png",
]
