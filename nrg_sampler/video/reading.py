"""Video files as data: when each frame is shown, which way up and how wide its pixels are.

Time starts at the first frame that a player shows. The frame at a time is the one that is shown then, the last that
began by that time, however irregular the frame rate. Frames are chosen while decoding; memory holds those that are
kept. Of an interlaced frame one of its two fields is shown, its missing rows as the mean of their neighbours.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nrg_sampler.video.endings import COPY_AGAIN, missing_end

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Frames = NDArray[np.uint8]

ROUNDING = 0.001  # seconds; some containers round the time of a frame to a millisecond
WORTH_SEEKING = 16  # frames; to seek costs about as much as to decode a few
INDEXED = ("mp4", "matroska")  # containers whose index leads to a key frame exactly
WIDEST_PIXEL = 4  # a pixel wider or narrower than this is a mistake in the header
COMPLETE = 0.9  # of the stated length; a file with less was cut off
LAST = 3  # packets among which one that was cut off is; a ts file has damaged ones anywhere
ABSENT = "does not exist"


class UnreadableVideoError(ValueError):
    """A file that cannot be read as a video; ``reason`` is why, a clause about the file."""

    def __init__(self, path: Path, reason: str, advice: str = COPY_AGAIN) -> None:
        named = f"{path}" if reason == ABSENT else f"{path} cannot be read as one: it"
        super().__init__(f"Expected a video file, but {named} {reason}; {advice}.")
        self.reason = f"it {reason}"


class _Packet(NamedTuple):
    """What the container says of a frame."""

    time: int | None  # in units of the stream
    duration: int
    is_key: bool
    is_hidden: bool  # by an edit list, as what was trimmed on the phone
    is_corrupt: bool  # shorter than stated


class VideoFile:
    """A video file whose frames are taken by their time.

    The file is read once for the times of its frames, without decoding them.

    Args:
        path: The file. Whatever its name looks like, it is a file, and no other is opened.

    Raises:
        UnreadableVideoError: If there is no such file, it holds no video, or its end is missing.
    """

    def __init__(self, path: Path) -> None:
        """Read the times of the frames."""
        self.path = path
        self._turn: tuple[int, int, bool] | None = None
        with self._opened() as (container, stream):
            self._unit = stream.time_base or Fraction(1, 1000)
            self._nominal = stream.guessed_rate or stream.average_rate or Fraction(25)
            self._pixel = _pixel_aspect(stream)
            self._seekable = any(name in container.format.name for name in INDEXED)
            stated = (stream.duration or 0) * self._unit if self._seekable else 0
            packets = [
                _Packet(packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard, packet.is_corrupt)
                for packet in container.demux(stream)
                if packet.size
            ]
            is_cut = container.format.name != "mpegts" and any(packet.is_corrupt for packet in packets[-LAST:])
        packets = _shown(packets)
        if not packets:
            raise UnreadableVideoError(path, "holds no frame")
        self._stamps: list[int] = []  # when frames are shown, in units of the stream
        self._keys: list[int] = []  # places of key frames among them
        count, length = len(packets), len(packets) / self._nominal
        stamps = {packet.time: packet for packet in packets if packet.time is not None}
        if all(packet.time is not None for packet in packets):  # else a bare stream, which knows an order only
            count = len(stamps)  # of two frames at one time the second is shown
            self._stamps = sorted(stamps)
            self._keys = [place for place, stamp in enumerate(self._stamps) if stamps[stamp].is_key]
            last = stamps[self._stamps[-1]].duration * self._unit or 1 / self._nominal
            length = (self._stamps[-1] - self._stamps[0]) * self._unit + last
        if length < COMPLETE * stated:
            raise UnreadableVideoError(path, f"ends after {float(length):.3g} of {float(stated):.3g} seconds")
        if (missing := missing_end(path)) is not None:
            raise UnreadableVideoError(path, *missing)
        if is_cut:
            raise UnreadableVideoError(path, f"was cut off after {float(length):.3g} seconds")
        self.seconds = float(length)
        steady = abs(length - count / self._nominal) < 2 * ROUNDING
        self.fps = float(self._nominal if steady else count / length)
        self.times = [float((stamp - self._stamps[0]) * self._unit) for stamp in self._stamps]
        self.times = self.times or [place / self.fps for place in range(count)]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width as a player shows them, upright and with square pixels."""
        height, width, _ = next(self.at([0.0])).shape
        return height, width

    @cached_property
    def even_times(self) -> list[float]:
        """As many times as there are frames, ``1 / fps`` apart; those of the frames themselves if these are steady."""
        steady = all(abs(time * self.fps - place) <= 0.5 for place, time in enumerate(self.times))
        return self.times if steady else [place / self.fps for place in range(len(self.times))]

    def at(self, times: Iterable[float], size: tuple[int, int] | None = None) -> Iterator[Frames]:
        """Decode the frames that are shown at some times.

        Args:
            times: Seconds after the first frame, ascending; there is no frame from ``seconds`` on.
            size: Height and width to shrink to; by default the size of the first.

        Yields:
            A frame for each time, shape ``(H, W, 3)``, RGB.

        Raises:
            UnreadableVideoError: If a frame cannot be decoded.
        """
        slack = min(ROUNDING, 0.25 / self.fps)
        wanted = [time for time in times if time < self.seconds]
        taken = 0
        shown: VideoFrame | None = None
        decoded = self._decoded(lambda: wanted[taken] + slack if taken < len(wanted) else math.inf)
        while taken < len(wanted):
            time, frame = next(decoded, (math.inf, None))
            if shown is not None and wanted[taken] + slack < time:
                self._turn = self._turn or _orientation(shown)
                picture = _picture(shown, self._pixel, self._turn, size)
                size = size or picture.shape[:2]  # a file can change its size midway
                while taken < len(wanted) and wanted[taken] + slack < time:
                    taken += 1
                    yield picture
            if frame is None:
                return
            shown = frame

    def _decoded(self, target: Callable[[], float]) -> Iterator[tuple[float, VideoFrame]]:
        """Decode frames with their times, but jump to the last key frame by the time ``target()``."""
        from av.error import InvalidDataError

        with self._opened() as (container, stream):
            packets, place, sought = container.demux(stream), -1, -1
            may_seek = self._seekable and bool(self._keys)
            while True:
                limit = bisect_right(self.times, target()) - 1  # the place of the frame that is wanted
                key = self._keys[max(0, bisect_right(self._keys, limit) - 1)] if may_seek else -1
                if max(place, sought) + WORTH_SEEKING < key <= limit:
                    container.seek(self._stamps[key], stream=stream)
                    packets, sought = container.demux(stream), key
                packet = next(packets, None)
                if packet is None:
                    return
                try:
                    frames = packet.decode()
                except InvalidDataError as error:
                    if place < 0:
                        continue  # a recording may begin within a group of pictures
                    raise UnreadableVideoError(
                        self.path, f"is damaged after {self.times[place]:.2f} seconds"
                    ) from error
                for frame in frames:
                    known = bool(self._stamps) and frame.pts is not None
                    place = bisect_right(self._stamps, frame.pts or 0) - 1 if known else place + 1
                    yield self.times[min(max(place, 0), len(self.times) - 1)], frame

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file, to be decoded by one thread."""
        import av

        try:
            # As a file object: colons and percent signs in its name mean nothing, and a playlist opens no other file.
            with (
                open(self.path, "rb") as file,
                av.open(file, "r", options={"protocol_whitelist": "none"}) as container,
            ):
                stream = _pictures(container)
                if stream is None:
                    raise UnreadableVideoError(self.path, "has no moving picture", "name a video")
                if getattr(stream, "codec_context", None) is None:
                    raise UnreadableVideoError(self.path, "has an unknown codec", "convert it, for example to H.264")
                stream.codec_context.thread_count = 1
                yield container, stream
        except (OSError, av.error.FFmpegError) as error:
            raise _explained(self.path, error) from error


def _shown(packets: list[_Packet]) -> list[_Packet]:
    """Those that a player shows: from the first key frame of a recording that begins within a group of pictures."""
    first = next((place for place, packet in enumerate(packets) if packet.is_key), 0)
    start = packets[first].time if packets else None
    return [
        packet
        for packet in packets[first:]
        if not packet.is_hidden and (start is None or packet.time is None or packet.time >= start)
    ]


def _pictures(container: InputContainer) -> VideoStream | None:
    """The video of a file; the cover of a song is none."""
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    return min(streams, key=lambda stream: not stream.disposition & Disposition.default, default=None)


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """Width of a pixel over its height."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return aspect if 1 <= max(aspect, 1 / aspect) <= WIDEST_PIXEL else Fraction(1)


def _picture(frame: VideoFrame, pixel: Fraction, turn: tuple[int, int, bool], size: tuple[int, int] | None) -> Frames:
    """A decoded frame in RGB, shape ``(H, W, 3)``: upright, with square pixels, shrunk to ``size``."""
    from av.video.reformatter import Interpolation

    across, down, turned = turn
    frame = _whole(frame) if frame.interlaced_frame else frame
    height, width = round(frame.height / min(pixel, Fraction(1))), round(frame.width * max(pixel, Fraction(1)))
    wanted = (height, width) if size is None else size[::-1] if turned else size
    whole = wanted[0] > 0 and height % wanted[0] == 0 and width % wanted[1] == 0
    target, how = ((height, width), Interpolation.BICUBIC) if whole else (wanted, Interpolation.AREA)
    picture = frame.reformat(target[1], target[0], "rgb24", interpolation=how).to_ndarray()
    if target != wanted:  # whole blocks: undoes an enlarging exactly
        blocks = picture.reshape(wanted[0], height // wanted[0], wanted[1], width // wanted[1], 3)
        picture = blocks.mean(axis=(1, 3)).round()
    picture = picture.swapaxes(0, 1) if turned else picture
    return np.ascontiguousarray(picture[::down, ::across], dtype=np.uint8)


def _whole(frame: VideoFrame) -> VideoFrame:
    """Turn an interlaced frame, two pictures whose rows take turns, into its upper one."""
    rows = frame.to_ndarray(format="rgb24")
    upper = rows[::2].astype(np.uint16)
    below = np.concatenate([upper[1:], upper[-1:]])
    rows[1::2] = ((upper + below + 1) // 2)[: len(rows[1::2])]
    return type(frame).from_ndarray(rows, format="rgb24")


def _orientation(frame: VideoFrame) -> tuple[int, int, bool]:
    """Whether a player mirrors a frame across (-1, else 1), then down, after it has exchanged rows and columns."""
    small = frame.reformat(16, 16, "rgb24")  # PyAV never frees a frame whose side data were read
    data: Any = small.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 1, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype=np.int32).tolist()  # x' = a x + c y, y' = b x + d y
    turned = abs(b) + abs(c) > abs(a) + abs(d)
    across, down = (c, b) if turned else (a, d)
    return -1 if across < 0 else 1, -1 if down < 0 else 1, turned


def _explained(path: Path, error: Exception) -> UnreadableVideoError:
    """Say what is wrong with a file that cannot be opened or decoded."""
    if not path.exists():
        return UnreadableVideoError(path, ABSENT, "correct the path")
    if not path.is_file():
        return UnreadableVideoError(path, "is no file", "name a video file")
    if isinstance(error, PermissionError):
        return UnreadableVideoError(path, "may not be read by this user", "change its permissions")
    if not path.stat().st_size:
        return UnreadableVideoError(path, "is empty")
    if (missing := missing_end(path)) is not None:
        return UnreadableVideoError(path, *missing)
    reason = getattr(error, "strerror", None) or error
    return UnreadableVideoError(path, f"is no video that ffmpeg knows ({reason})", "name another, or convert it")
