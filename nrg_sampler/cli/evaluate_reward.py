"""``nrg-sampler evaluate-reward``: how often a reward is right, at which noise, and how well calibrated it is."""

from __future__ import annotations

import argparse
from pathlib import Path

from nrg_sampler.cli.progress import show
from nrg_sampler.cli.reward_data import add_pairs, add_teacher, data_settings, encoding_settings, given, share
from nrg_sampler.json_text import to_json

HELP = "Measure the accuracy of latent rewards on labelled pairs, with and without ties, by axis and noise level."
EXAMPLE = "evaluate-reward videogen-rewardbench.csv --reward my-reward/reward --out accuracy"

# option -> field of RewardEvaluation
EVALUATION = {"reward": "rewards", "out": "out", "held_out": "held_out", "seed": "seed", "cpu": "cpu"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_pairs(parser)
    parser.add_argument(
        "--reward", nargs="+", required=True, metavar="DIR", help="several draw accuracy against training pairs"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for JSON, table and plots")
    parser.add_argument(
        "--held-out",
        type=share,
        metavar="F",
        help="only the pairs that train-reward --hold-out F left out of this file",
    )
    parser.add_argument("--seed", type=int, help="of noise and noise levels (default: 0)")
    add_teacher(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the rewards and print their figures."""
    from nrg_sampler.training.evaluate import evaluate_rewards
    from nrg_sampler.training.settings import RewardEvaluation

    settings = RewardEvaluation(
        data=data_settings(arguments), encoding=encoding_settings(arguments), **given(arguments, EVALUATION)
    )
    result = show(evaluate_rewards(settings))
    print(to_json(result.to_dict()) if arguments.json else result.markdown())
    return 0
