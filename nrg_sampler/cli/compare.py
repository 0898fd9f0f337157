"""``nrg-sampler compare``: the same seeds without and with the reward, side by side."""

from __future__ import annotations

import argparse

from nrg_sampler.cli import parser as options

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

    return run_seeds(arguments)
