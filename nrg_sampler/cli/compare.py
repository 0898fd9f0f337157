"""``nrg-sampler compare``: the same seeds without and with the reward, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options

if TYPE_CHECKING:
    from nrg_sampler.runs.manifest import Manifest
    from nrg_sampler.runs.sampler import Sampler

HELP = "Sample the same seeds without and with the reward; write them side by side and say what changed."
EXAMPLE = 'compare "a red circle moving right" --num 4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_prompt(parser)
    parser.add_argument(
        "--plan", action="store_true", help="say what it would cost, after timing two steps, and write nothing"
    )
    options.add_model(parser)
    options.add_sampling(parser)
    options.add_guidance(parser)
    options.add_judges(parser)


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.cli.batch import run_seeds

    return run_seeds(arguments, make)


def make(sampler: Sampler, seed: int, path: Path) -> Manifest:
    """Sample one seed twice and write ``path`` (unguided left), a strip of frames and the manifest."""
    from nrg_sampler.video import enlarge, frame_strip, side_by_side, write_mp4, write_png

    unguided, left = sampler.sample(seed, "unguided")
    guided, right = sampler.sample(seed, "guided")
    manifest = sampler.manifest("compare", seed, [left, right])
    videos = [enlarge(unguided), enlarge(guided)]
    write_mp4(side_by_side(videos), path, manifest.fps)
    write_png(frame_strip(videos), path.with_suffix(".png"))
    manifest.write(path.with_suffix(".json"))
    return manifest
