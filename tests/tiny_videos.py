"""Small video files of every kind, written by ffmpeg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-threads", "1")
RAMP = "format=gray,geq=lum='min(255,T*64)'"  # brightness tells the time: 64 a second
QUARTERS = "color=red:s=48x32:r=30:d=1,drawbox=w=24:h=16:c=white:t=fill"  # white at the top left, red elsewhere


def encode(path: Path, picture: str, *options: str) -> Path:
    """Encode a picture that ffmpeg generates."""
    return run(path, "-f", "lavfi", "-i", picture, *options)


def remux(path: Path, source: Path, *before: str, after: tuple[str, ...] = ()) -> Path:
    """Copy a file's pictures into another file."""
    return run(path, *before, "-i", str(source), "-c", "copy", *after)


def run(path: Path, *arguments: str) -> Path:
    """Write a file by ffmpeg."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments, f"file:{path}"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def ramp(path: Path, rate: int, keep: str, seconds: float = 4) -> Path:
    """A file with an irregular rate whose brightness rises by 64/s; ``keep`` selects frames by ``n`` and ``t``."""
    picture = f"color=black:s=48x32:r={rate}:d={seconds}"
    return encode(path, picture, "-vf", f"{RAMP},select='{keep}'", "-fps_mode", "passthrough", *H264)
