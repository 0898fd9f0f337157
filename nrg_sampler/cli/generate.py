"""``nrg-sampler generate``: guided videos of a prompt, or the one of a manifest again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options

if TYPE_CHECKING:
    from nrg_sampler.runs.manifest import Manifest
    from nrg_sampler.runs.sampler import Sampler

HELP = "Sample videos of a prompt, steered by the reward."
EXAMPLE = 'generate "a red circle moving right" --weights 0:0:1 --num 4'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_prompt(parser, required=False)
    parser.add_argument("--replay", type=Path, metavar="FILE.json", help="make the video of a manifest again")
    parser.add_argument(
        "--plan", action="store_true", help="say what it would cost, after timing two steps, and write nothing"
    )
    options.add_search(parser)
    options.add_model(parser)
    options.add_sampling(parser)
    options.add_guidance(parser)
    options.add_judges(parser)


def run(arguments: argparse.Namespace) -> int:
    if arguments.replay is not None:
        from nrg_sampler.cli import replay

        return replay.run(arguments)
    if arguments.prompt is None:
        raise ValueError('Expected a prompt or --replay, but got neither; write nrg-sampler generate "a red circle".')
    from nrg_sampler.cli.batch import run_seeds

    return run_seeds(arguments, make)


def make(sampler: Sampler, seed: int, path: Path) -> Manifest:
    """Sample one seed and write ``path`` and the manifest beside it."""
    from nrg_sampler.video import enlarge, write_mp4

    frames, clip = sampler.sample(seed)
    manifest = sampler.manifest("generate", seed, [clip])
    write_mp4(enlarge(frames), path, manifest.fps)
    manifest.write(path.with_suffix(".json"))
    return manifest
