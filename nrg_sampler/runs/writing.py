"""What a command makes of one seed: the files of a clip, or of a clip without and with the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from nrg_sampler.files import writable_file
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.runs.sampler import Sampler
from nrg_sampler.video import enlarge, frame_strip, side_by_side, writable_mp4, write_mp4, write_png

Make: TypeAlias = Callable[[Sampler, int, Path], Manifest]


def generate(sampler: Sampler, seed: int, path: Path) -> Manifest:
    """Sample one seed and write ``path`` and the manifest beside it."""
    frames, clip = sampler.sample(seed)
    manifest = sampler.manifest("generate", seed, [clip])
    write_mp4(enlarge(frames), path, sampler.fps)
    manifest.write(path.with_suffix(".json"))
    return manifest


def compare(sampler: Sampler, seed: int, path: Path) -> Manifest:
    """Sample one seed twice and write ``path`` (unguided left), a strip of frames and the manifest."""
    unguided, left = sampler.sample(seed, guided=False)
    guided, right = sampler.sample(seed)
    manifest = sampler.manifest("compare", seed, [left, right])
    videos = [enlarge(unguided), enlarge(guided)]
    write_mp4(side_by_side(videos), path, sampler.fps)
    write_png(frame_strip(videos), path.with_suffix(".png"))
    manifest.write(path.with_suffix(".json"))
    return manifest


def strip_of_all(video: Path) -> Path:
    """Return where the picture of all seeds stands that ``compare`` makes beside a named video."""
    return video.with_name(f"{video.stem}-compare.png")


def writable_files(command: str, path: Path) -> Path:
    """Prove that every file of a command can be written, before anything is sampled.

    Args:
        command: One of ``MAKERS``.
        path: The video, named as it will be.

    Raises:
        ValueError: If one cannot be written, or there is no encoder.
    """
    for suffix in SUFFIXES[command]:
        writable_file(path.with_suffix(suffix))
    return writable_mp4(path)


MAKERS: dict[str, Make] = {"generate": generate, "compare": compare}  # by the command that a manifest names
SUFFIXES = {"generate": (".json",), "compare": (".json", ".png")}  # of the files beside the video
