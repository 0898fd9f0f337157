"""``nrg-sampler score``: what judges say of finished videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options
from nrg_sampler.json_text import to_json

if TYPE_CHECKING:
    from nrg_sampler.judges.base import Judge
    from nrg_sampler.runs.sampler import Scores
    from nrg_sampler.video.reading import VideoFile

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

    prompts = [arguments.prompt or _asked(path) for path in arguments.videos]
    judges = load_judges(arguments.judge or ["oracle"], require_device(arguments.device or default_device()))
    for path, prompt in zip(arguments.videos, prompts, strict=True):
        scores = _scores(path, judges, prompt, arguments.fps)
        if arguments.json:
            print(to_json({"video": str(path), "prompt": prompt, "scores": scores}), flush=True)
        else:
            print(path)
            for judge, axes in scores.items():
                print(f"  {judge}  " + " · ".join(f"{axis} {value:.3f}" for axis, value in axes.items()), flush=True)
    return 0


def _scores(path: Path, judges: Mapping[str, Judge], prompt: str, fps: float | None) -> Scores:
    """Let every judge score a file; what a judge is shown of a long or large one is said on the standard error."""
    from nrg_sampler.judges.showing import view_for
    from nrg_sampler.runs.sampler import judge_scores
    from nrg_sampler.video.reading import VideoFile

    video = VideoFile(path)
    size = _sampled_size(video)
    views = {name: view_for(judge, video, size, fps) for name, judge in judges.items()}
    scores: Scores = {}
    for view in dict.fromkeys(views.values()):
        frames = view.read(video)
        alike = {name: judge for name, judge in judges.items() if views[name] == view}
        if len(frames) < len(video.times) or view.size != size:
            height, width = view.size
            print(
                f"nrg-sampler: {path} is long or large: shown to {', '.join(alike)} are {len(frames)} of "
                f"{len(video.times)} frames at {width} x {height} pixels.",
                file=sys.stderr,
            )
        scores |= judge_scores(alike, frames, prompt, view.fps)
    return {name: scores[name] for name in judges}


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


def _sampled_size(video: VideoFile) -> tuple[int, int]:
    """Height and width of what was sampled: smaller than the file if its manifest tells of a small, enlarged video."""
    from nrg_sampler.runs.manifest import Manifest

    beside = video.path.with_suffix(".json")
    if not beside.exists():
        return video.size
    height, width = Manifest.read(beside).clips[0].shape[1:3]
    factor = video.size[0] // height
    return (height, width) if factor >= 2 and video.size == (height * factor, width * factor) else video.size
