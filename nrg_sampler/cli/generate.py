"""``nrg-sampler generate``: guided videos of a prompt, or the one of a manifest again."""

from __future__ import annotations

import argparse
from pathlib import Path

from nrg_sampler.cli import parser as options

HELP = "Sample videos of a prompt, steered by the reward."
NOT_OF_A_RECIPE = ("replay", "out", "device", "json")  # what may be said beside --replay
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
        from nrg_sampler.cli.replay import replay

        given = options.options_given(arguments, add_arguments, NOT_OF_A_RECIPE)
        return replay(arguments.replay, arguments.out, arguments.device, given, arguments.json)
    if arguments.prompt is None:
        raise ValueError('Expected a prompt or --replay, but got neither; write nrg-sampler generate "a red circle".')
    from nrg_sampler.cli.batch import run_seeds

    return run_seeds(arguments)
