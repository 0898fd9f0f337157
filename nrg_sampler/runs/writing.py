"""What a command makes of one seed: the files of a clip, or of a clip without and with the reward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.runs.sampler import Sampler
from nrg_sampler.video import enlarge, frame_strip, side_by_side, write_mp4, write_png

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


MAKERS: dict[str, Make] = {"generate": generate, "compare": compare}  # by the command that a manifest names
