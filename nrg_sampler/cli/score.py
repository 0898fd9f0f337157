"""``nrg-sampler score``: what judges say of finished videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options

if TYPE_CHECKING:
    from nrg_sampler.video import Frames

HELP = "Score finished videos with judges that do not guide."
EXAMPLE = 'score outputs/*.mp4 --prompt "a red circle moving right" --judge oracle'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", metavar="VIDEO", nargs="+", type=Path, help="video files")
    parser.add_argument("--prompt", help="what was asked for (default: what the manifest beside each video says)")
    options.add_judges(parser)
    parser.add_argument("--fps", type=options.positive, metavar="N", help="of the videos (default: as in the file)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one, else cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a video, for programs")


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.judges.loading import load_judges
    from nrg_sampler.runs.device import default_device, require_device
    from nrg_sampler.runs.sampler import judge_scores
    from nrg_sampler.video import read_mp4

    prompts = [arguments.prompt or _asked(path) for path in arguments.videos]
    judges = load_judges(arguments.judge or ["oracle"], require_device(arguments.device or default_device()))
    for path, prompt in zip(arguments.videos, prompts, strict=True):
        frames, fps = read_mp4(path)
        scores = judge_scores(judges, _as_sampled(frames, path), prompt, arguments.fps or fps)
        if arguments.json:
            print(json.dumps({"video": str(path), "prompt": prompt, "scores": scores}), flush=True)
        else:
            print(path)
            for judge, axes in scores.items():
                print(f"  {judge}  " + " · ".join(f"{axis} {value:.3f}" for axis, value in axes.items()), flush=True)
    return 0


def _asked(video: Path) -> str:
    """Return the prompt in the manifest beside a video.

    Raises:
        ValueError: If there is none, or the file shows two videos side by side.
    """
    from nrg_sampler.runs.manifest import Manifest

    beside = video.with_suffix(".json")
    if not beside.exists():
        raise ValueError(
            f"Expected --prompt, for there is no manifest beside {video}; say what the video should show."
        )
    manifest = Manifest.read(beside)
    if manifest.command != "generate":
        raise ValueError(
            f"Expected a video of its own, but {video} shows several side by side; "
            f"their scores are in {beside.name} already."
        )
    return manifest.recipe.prompt


def _as_sampled(frames: Frames, video: Path) -> Frames:
    """Undo the enlarging of a small video, if the manifest beside it tells of any: judges see what was sampled."""
    from nrg_sampler.runs.manifest import Manifest

    beside = video.with_suffix(".json")
    if not beside.exists():
        return frames
    height, width = Manifest.read(beside).clips[0].shape[1:3]
    factor = frames.shape[1] // height
    if factor < 2 or frames.shape[1:3] != (height * factor, width * factor):
        return frames
    blocks = frames.reshape(len(frames), height, factor, width, factor, 3)
    whole: Frames = blocks.mean(axis=(2, 4)).round().astype(frames.dtype)
    return whole
