"""How much of a video file a judge is shown: all of a sampled clip, a selection of a long or large one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nrg_sampler.judges.base import Judge
from nrg_sampler.video import Frames, read_frames
from nrg_sampler.video.reading import VideoFile

MOST_PIXELS = 2**25  # of all frames together: 81 frames of 832 x 480, 400 MB as floats
MOST_FRAMES = 64  # of a file with more pixels, unless the judge says how many it looks at


@dataclass(frozen=True)
class View:
    """A selection of a file.

    Args:
        times: When its frames are shown, in seconds.
        size: Their height and width.
        fps: Their rate.
    """

    times: tuple[float, ...]
    size: tuple[int, int]
    fps: float

    def read(self, video: VideoFile) -> Frames:
        """Read the frames, shape ``(T, H, W, 3)``."""
        return read_frames(video, self.times, self.size)


def view_for(judge: Judge, video: VideoFile, size: tuple[int, int] | None = None, fps: float | None = None) -> View:
    """Choose what a judge is shown of a file.

    A file with at most ``judge.most_pixels`` pixels in all its frames (2^25 unless the judge says) is shown whole. Of
    a larger one come as many frames as ``judge.frames_seen(total, fps)`` says, 64 by default, evenly spread from the
    first to the last and shrunk until they keep to that number.

    Args:
        judge: Who will score it.
        video: The file.
        size: Height and width of its frames as they were sampled; as in the file by default.
        fps: Frames per second, if not as in the file.
    """
    about: Any = judge
    height, width = size or video.size
    times, rate = video.even_times, fps or video.fps
    most, total = int(getattr(about, "most_pixels", MOST_PIXELS)), len(times)
    if total * height * width <= most:
        return View(tuple(times), (height, width), rate)
    count = about.frames_seen(total, rate) if hasattr(about, "frames_seen") else min(total, MOST_FRAMES)
    places = [round(index * (total - 1) / max(1, count - 1)) for index in range(count)]
    shrink = min(1.0, math.sqrt(most / (count * height * width)))
    shrunk = max(1, int(height * shrink)), max(1, int(width * shrink))
    return View(tuple(times[place] for place in places), shrunk, rate * count / total)
