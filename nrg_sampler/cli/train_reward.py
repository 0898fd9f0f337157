"""``nrg-sampler train-reward``: from a preference file or a teacher to a noise-aware reward of measured accuracy."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.cli.parser import number, positive, whole_number
from nrg_sampler.cli.progress import show
from nrg_sampler.cli.reward_data import add_pairs, add_teacher, data_settings, encoding_settings, given, share
from nrg_sampler.json_text import to_json

if TYPE_CHECKING:
    from nrg_sampler.training.run import TrainedReward
    from nrg_sampler.training.settings import RewardTraining

HELP = "Train a noise-aware latent reward on preference pairs of video files, or on a teacher's scores of clips."
EXAMPLE = "train-reward pairs.csv --model shapes --out my-reward --steps 500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from nrg_sampler.rewards.reads import POOLINGS
    from nrg_sampler.training.losses import LOSSES
    from nrg_sampler.training.objective import SIGMA_SAMPLINGS, TRUNKS
    from nrg_sampler.training.settings import MIXED_PRECISIONS

    add_pairs(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the reward goes to DIR/reward")
    parser.add_argument("--axes", nargs="+", metavar="NAME", help="columns that are axes (default: VQ, MQ and TA)")
    parser.add_argument(
        "--text-axes", nargs="*", metavar="NAME", help="axes that see the prompt (default: TA, or all without a TA)"
    )
    parser.add_argument("--hold-out", type=share, metavar="F", help="share of pairs to test on (0.1)")
    parser.add_argument("--fraction", type=share, metavar="F", help="share of the others to train on (1)")
    parser.add_argument("--data", metavar="TEXT", help="for the model card: what the pairs are")
    parser.add_argument(
        "--recommended-scale", metavar="X", help="the default guidance strength, as 40 or VQ=40,MQ=40,TA=160 (1)"
    )
    parser.add_argument(
        "--recommended-damping", metavar="P", help="powers of 1 - sigma on its gradients, as 1 or VQ=0,TA=2 (1)"
    )
    parser.add_argument("--recommended-fading", metavar="Q", help="powers of sigma on them, as 2 or VQ=4,TA=0 (0)")
    parser.add_argument("--license", metavar="ID", help="for the model card (default: other)")
    add_teacher(parser)
    objective = parser.add_argument_group("objective (defaults: see the class Objective)")
    objective.add_argument("--loss", choices=tuple(LOSSES))
    objective.add_argument(
        "--tilt", type=positive, metavar="W", help="of tilted-regression, the strength the reward is right for (1)"
    )
    objective.add_argument("--pooling", choices=POOLINGS, help="how axes read the trunk's features")
    objective.add_argument("--shared-query", dest="separate_queries", action="store_false", default=None)
    objective.add_argument(
        "--members", dest="num_members", type=whole_number(1), metavar="M", help="of the ensemble (default: 1)"
    )
    objective.add_argument("--blocks", dest="num_blocks", type=whole_number(1), metavar="K", help="of the transformer")
    objective.add_argument("--token-reads", dest="num_token_reads", type=whole_number(0), metavar="N")
    objective.add_argument("--trunk", choices=TRUNKS, help="what of the blocks is trained")
    objective.add_argument("--lora-rank", type=whole_number(1), metavar="N")
    objective.add_argument("--sigma-sampling", choices=tuple(SIGMA_SAMPLINGS))
    objective.add_argument("--shift", type=positive, metavar="X", help="of shifted sigmas")
    objective.add_argument("--independent-noise", dest="same_noise", action="store_false", default=None)
    objective.add_argument("--clean", dest="noised", action="store_false", default=None, help="train on clean latents")
    objective.add_argument("--prompt-dropout", type=number, metavar="F", help="share of prompts withheld")
    objective.add_argument(
        "--trajectory-share", dest="trajectories", type=share, metavar="F", help="with --trajectories, of pairs (0.85)"
    )
    objective.add_argument(
        "--noisy-latents-only",
        dest="reads_prediction",
        action="store_false",
        default=None,
        help="with --trajectories, do without the clean latents that the velocity predicts",
    )
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=whole_number(1), metavar="N")
    training.add_argument("--batch", type=whole_number(1), metavar="N", help="pairs per step, over all processes")
    training.add_argument("--lr", type=positive, metavar="X")
    training.add_argument("--trunk-lr", type=positive, metavar="X")
    training.add_argument("--warmup", type=whole_number(0), metavar="N")
    training.add_argument("--ema", type=number, metavar="X")
    training.add_argument("--seed", type=whole_number(0), metavar="N")
    training.add_argument("--save-every", type=whole_number(1), metavar="N", help="steps between checkpoints")
    training.add_argument("--accumulate", type=whole_number(1), metavar="N", help="parts of a batch")
    training.add_argument(
        "--mixed-precision", choices=MIXED_PRECISIONS, help="default: auto, bf16 where it is fast, else no"
    )
    training.add_argument("--tensorboard", action="store_true", help="log to OUT/tensorboard as well")


def run(arguments: argparse.Namespace) -> int:
    """Train the reward and print where it is and how accurate."""
    from nrg_sampler.training.run import train_reward

    training = train_reward(training_settings(arguments))
    result = show(training)
    if training.is_main_process:
        _print(result, arguments.json)
    return 0


# option -> field of RewardTraining
TRAINING = {"out": "out", "hold_out": "hold_out", "text_axes": "text_axes", "data": "description"}
TRAINING |= {"license": "license", "cpu": "cpu", "mixed_precision": "mixed_precision", "accumulate": "accumulate"}
TRAINING |= {"tensorboard": "tensorboard"}
NOT_OPTIONS = ("weight_decay", "clip")  # of TrainerSettings
RECOMMENDATION = {"recommended_scale": "scale", "recommended_damping": "damping", "recommended_fading": "fading"}


def training_settings(arguments: argparse.Namespace) -> RewardTraining:
    """Return the settings of a run from the options of the command.

    Raises:
        ValueError: If options do not go together or are out of range.
    """
    from nrg_sampler.training.objective import Objective
    from nrg_sampler.training.settings import Recommendation, RewardTraining, TeacherClips, objective_for
    from nrg_sampler.training.trainer import TrainerSettings

    labelled = given(arguments, {"axes": "axes", "fraction": "fraction"})
    data = data_settings(arguments, **labelled)
    if labelled and isinstance(data, TeacherClips):
        name = next(iter(labelled))
        raise ValueError(f"Expected no --{name} beside --teacher, whose axes and clips are all used; leave it out.")
    return RewardTraining(
        data=data,
        encoding=encoding_settings(arguments),
        objective=objective_for(data, given(arguments, _fields(Objective))),
        trainer=TrainerSettings(**given(arguments, _fields(TrainerSettings))),
        recommended=Recommendation(**given(arguments, RECOMMENDATION)),
        **given(arguments, TRAINING),
    )


def _fields(kind: type[Any]) -> dict[str, str]:
    """Return the fields of a dataclass that have an option of the same name, as ``given`` takes them."""
    return {item.name: item.name for item in fields(kind) if item.name not in NOT_OPTIONS}


def _print(result: TrainedReward, as_json: bool) -> None:
    if as_json:
        report = {
            "reward": str(result.folder),
            "axes": list(result.axes),
            "pairs": result.pairs,
            "held_out": result.held_out,
            "bad_rows": [{"row": bad.row, "reason": bad.reason} for bad in result.bad],
            "loss": result.loss,
            "already_trained": result.loss is None,
            "accuracy": result.accuracy,
        }
        print(to_json(report))
        return
    print(f"wrote {result.folder}: {', '.join(result.axes)}, trained on {result.pairs} pairs")
    for level, by_axis in (result.accuracy or {}).items():
        cells = [f"{axis} {100 * cell['accuracy']:.1f} % of {cell['pairs']}" for axis, cell in by_axis.items()]
        print(f"held-out pairs ranked right at sigma {level}: {', '.join(cells)}")
