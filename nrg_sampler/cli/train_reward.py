"""``nrg-sampler train-reward``: from a preference file to a noise-aware reward with known accuracy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.cli.pairs import add_pairs, encoded, given_clip, load_pipeline, share
from nrg_sampler.cli.parser import number, positive, whole_number
from nrg_sampler.cli.teacher import add_teacher, taught

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.training.decoding import ClipSettings
    from nrg_sampler.training.objective import Objective
    from nrg_sampler.training.pairs import PairData
    from nrg_sampler.training.preferences import BadRow
    from nrg_sampler.training.trainer import TrainerSettings

HELP = "Train a noise-aware latent reward on preference pairs of video files, or on what a teacher says of clips."
EXAMPLE = "train-reward pairs.csv --model shapes --out my-reward --steps 500"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from nrg_sampler.rewards.reads import POOLINGS
    from nrg_sampler.training.losses import LOSSES
    from nrg_sampler.training.objective import SIGMA_SAMPLINGS, TRUNKS

    add_pairs(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the reward goes to DIR/reward")
    parser.add_argument("--axes", nargs="+", metavar="NAME", help="columns that are axes (default: all with labels)")
    parser.add_argument(
        "--text-axes", nargs="*", metavar="NAME", help="axes that see the prompt (default: TA, or all without a TA)"
    )
    parser.add_argument("--hold-out", type=share, default=0.1, metavar="F", help="share of pairs to test on (0.1)")
    parser.add_argument("--fraction", type=share, default=1.0, metavar="F", help="share of the others to train on (1)")
    parser.add_argument("--data", metavar="TEXT", help="for the model card: what the pairs are")
    parser.add_argument(
        "--recommended-scale", metavar="X", help="the default guidance strength, as 40 or VQ=40,MQ=40,TA=160 (1)"
    )
    parser.add_argument(
        "--recommended-damping", metavar="P", help="powers of 1 - sigma on its gradients, as 1 or VQ=0,TA=2 (1)"
    )
    parser.add_argument("--recommended-fading", metavar="Q", help="powers of sigma on them, as 2 or VQ=4,TA=0 (0)")
    parser.add_argument("--license", default="other", metavar="ID", help="for the model card (default: other)")
    add_teacher(parser)
    objective = parser.add_argument_group("objective (defaults: see the class Objective)")
    objective.add_argument("--loss", choices=tuple(LOSSES))
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
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=whole_number(1), metavar="N")
    training.add_argument("--batch", type=whole_number(1), metavar="N", help="pairs per step, over all processes")
    training.add_argument("--lr", type=positive, metavar="X")
    training.add_argument("--trunk-lr", type=positive, metavar="X")
    training.add_argument("--warmup", type=whole_number(0), metavar="N")
    training.add_argument("--ema", type=number, metavar="X")
    training.add_argument("--seed", type=whole_number(0), metavar="N")
    training.add_argument("--save-every", type=whole_number(1), metavar="N", help="steps between checkpoints")
    training.add_argument("--accumulate", type=whole_number(1), default=1, metavar="N", help="parts of a batch")
    training.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    training.add_argument("--tensorboard", action="store_true", help="log to OUT/tensorboard as well")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nrg_sampler.files import writable_folder
    from nrg_sampler.rewards.latent import LatentReward, latent_space
    from nrg_sampler.training.objective import Objective
    from nrg_sampler.training.prepare import clip_settings
    from nrg_sampler.training.trainer import TrainerSettings, calibrate, train

    if arguments.teacher is not None and arguments.loss is None:
        arguments.loss = "regression"
    objective: Objective = _of(Objective, arguments)
    settings: TrainerSettings = _of(TrainerSettings, arguments)
    _recommended(arguments)  # a slip is told before any clip is made
    writable_folder(arguments.out)
    accelerator = _accelerator(arguments)
    pipe = load_pipeline(arguments, accelerator.device)
    clips = clip_settings(arguments.model, given_clip(arguments))
    with accelerator.main_process_first():
        material = _material(arguments, pipe, clips, accelerator)
    training, held_out = material.training, material.held_out
    torch.manual_seed(settings.seed)  # queries, reads and heads begin with random numbers, alike in every process
    recommended = _recommended(arguments, training.axes)
    reward = LatentReward.from_transformer(
        material.transformer,
        **objective.reward_options(),
        axes=training.axes,
        text_axes=_text_axes(training.axes, arguments.text_axes),
        latent_space=latent_space(pipe.vae),
        **recommended,
    ).float()
    # Without axes that see the prompt, the layers that read it take no part, and processes must not wait for them.
    accelerator.ddp_handler.find_unused_parameters = not reward.config.text_axes
    del pipe, material.transformer
    reward.to(accelerator.device)
    steps = train(reward, training, objective, settings, arguments.out / "checkpoints", accelerator)
    last = _follow(steps, settings.steps, arguments, accelerator)
    if accelerator.is_main_process:
        calibrate(reward, material.samples, accelerator.device, settings.seed)
        accuracy = _accuracy(reward, held_out, accelerator.device) if held_out is not None else None
        reward.register_to_config(about=_about(arguments, objective, settings, material, accuracy, vars(clips)))
        reward.to("cpu").save_pretrained(arguments.out / "reward")
        _report(arguments, material, last, accuracy)
    accelerator.end_training()
    return 0


@dataclass
class Material:
    """What a reward is made from.

    Args:
        training: Pairs to train on.
        held_out: Pairs to test on, if there are any.
        samples: Pairs whose clips give mean and standard deviation.
        transformer: The trunk's.
        bad: Rows and files that were left out.
        about: The data in words, for the model card.
    """

    training: PairData
    held_out: PairData | None
    samples: PairData
    transformer: Any
    bad: list[BadRow]
    about: str


def _material(arguments: argparse.Namespace, pipe: Any, clips: ClipSettings, accelerator: Any) -> Material:
    """Labelled pairs, or those of a teacher."""
    quiet = not accelerator.is_main_process
    if arguments.teacher is None:
        if arguments.prompts is not None:
            raise ValueError("Expected --teacher NAME beside --prompts, to score the samples, but got none.")
        prepared = encoded(arguments, pipe, clips, arguments.axes, quiet)
        training, held_out = _split(prepared, arguments)
        about = arguments.data or arguments.pairs.name
        return Material(training, held_out, training, prepared.encoder.transformer, prepared.table.bad, about)
    for name, given in (("--axes", arguments.axes is not None), ("--fraction", arguments.fraction != 1)):
        if given:
            raise ValueError(f"Expected no {name} beside --teacher, whose axes and clips are all used; leave it out.")
    found = taught(arguments, pipe, clips, arguments.hold_out, accelerator.device, quiet)
    if found.training is None or found.own is None:
        raise ValueError(
            f"Expected clips to train on, but --hold-out {arguments.hold_out:g} leaves none; hold out less."
        )
    about = arguments.data or found.about
    return Material(found.training, found.held_out, found.own, found.transformer, found.bad, about)


def _of(kind: Any, arguments: argparse.Namespace) -> Any:
    """Make a settings object of the options that were given."""
    values = {item.name: getattr(arguments, item.name, None) for item in fields(kind)}
    return kind(**{name: value for name, value in values.items() if value is not None})


def _recommended(arguments: argparse.Namespace, axes: Sequence[str] | None = None) -> dict[str, Any]:
    """What the reward is to recommend to its users, as options of ``LatentReward``.

    Raises:
        ValueError: If numbers do not parse, are out of range or do not fit the axes, once these are known.
    """
    from nrg_sampler.guidance.trust import powers_of, read_powers

    recommended: dict[str, Any] = {}
    for name in ("recommended_scale", "recommended_damping", "recommended_fading"):
        given = getattr(arguments, name)
        if given is not None:
            read = read_powers(name, given)
            recommended[name] = read if axes is None else list(powers_of(name, given, axes, ()))
    if axes is not None and min(recommended.get("recommended_scale", [1.0])) <= 0:
        raise ValueError(
            f"Expected `recommended_scale` above 0 for each axis, but got {arguments.recommended_scale}; name every axis."
        )
    return recommended


def _accelerator(arguments: argparse.Namespace) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, is_tensorboard_available

    if arguments.tensorboard and not is_tensorboard_available():
        raise ImportError("--tensorboard needs TensorBoard; install it with pip install tensorboard.")
    accelerator = Accelerator(
        cpu=arguments.cpu,
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.accumulate,
        log_with="tensorboard" if arguments.tensorboard else None,
        project_dir=arguments.out / "tensorboard" if arguments.tensorboard else None,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    if arguments.tensorboard:
        accelerator.init_trackers("reward")
    return accelerator


def _split(prepared: Any, arguments: argparse.Namespace) -> tuple[PairData, PairData | None]:
    """Pairs to train on, and held-out ones if there are any."""
    from nrg_sampler.training.pairs import PairData, subset
    from nrg_sampler.training.preferences import split_pairs

    pairs = prepared.table.pairs
    tested = list(split_pairs(pairs, arguments.hold_out, "held-out"))
    chosen = split_pairs(pairs, arguments.fraction, "fraction")  # a larger share holds all of a smaller one
    trained = [keep and not test for keep, test in zip(chosen, tested, strict=True)]
    if not any(trained):
        raise ValueError(
            f"Expected pairs to train on, but --hold-out {arguments.hold_out:g} and --fraction {arguments.fraction:g} "
            f"leave none of {len(pairs)}; hold out less, or add pairs."
        )
    held_out = PairData.of(subset(prepared.table, tested), prepared.cache) if any(tested) else None
    return PairData.of(subset(prepared.table, trained), prepared.cache), held_out


def _text_axes(axes: tuple[str, ...], given: list[str] | None) -> tuple[str, ...]:
    return tuple(given) if given is not None else ("TA",) if "TA" in axes else axes


def _follow(
    steps: Iterator[dict[str, float]], total: int, arguments: argparse.Namespace, accelerator: Any
) -> dict[str, float]:
    """Run the training with a progress bar and a log; returns the numbers of the last step."""
    from tqdm.auto import tqdm

    shown = accelerator.is_main_process
    last: dict[str, float] = {}
    with tqdm(total=total, unit="step", disable=not shown or not sys.stderr.isatty()) as bar:
        for last in steps:
            bar.update(last["step"] - bar.n)
            bar.set_postfix(loss=f"{last['loss']:.4f}", accuracy=f"{last['accuracy']:.3f}")
            accelerator.log(last, step=int(last["step"]))
            if shown:
                with open(arguments.out / "training.jsonl", "a") as log:
                    log.write(json.dumps(last) + "\n")
    return last


def _accuracy(reward: LatentReward, data: PairData, device: Any) -> dict[str, Any]:
    import torch

    from nrg_sampler.training.grade import accuracy_by_bin, score_differences

    differences = torch.cat([found for found, _ in score_differences(reward, data, device)])
    return accuracy_by_bin(differences, data)


def _about(
    arguments: argparse.Namespace,
    objective: Objective,
    settings: TrainerSettings,
    material: Material,
    accuracy: dict[str, Any] | None,
    clips: dict[str, Any],
) -> dict[str, Any]:
    """What the model card and later evaluations need to know."""
    base = arguments.model if not Path(arguments.model).exists() else Path(arguments.model).resolve().name
    pairs = len(material.training)
    return {
        "base_model": base,
        "data": f"{material.about}, {pairs} pairs",
        "license": arguments.license,
        "training_pairs": pairs,
        "training": {**vars(objective), "steps": settings.steps, "batch": settings.batch, "lr": settings.lr},
        "clips": clips,
        "accuracy": accuracy,
    }


def _report(
    arguments: argparse.Namespace, material: Material, last: dict[str, float], accuracy: dict[str, Any] | None
) -> None:
    training, held_out = material.training, material.held_out
    report = {
        "reward": str(arguments.out / "reward"),
        "axes": list(training.axes),
        "pairs": len(training),
        "held_out": 0 if held_out is None else len(held_out),
        "bad_rows": [{"row": bad.row, "reason": bad.reason} for bad in material.bad],
        "loss": last.get("loss"),
        "accuracy": accuracy,
    }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"wrote {report['reward']}: {', '.join(training.axes)}, trained on {len(training)} pairs")
    for level, by_axis in (accuracy or {}).items():
        cells = [f"{axis} {100 * found['accuracy']:.1f} % of {found['pairs']}" for axis, found in by_axis.items()]
        print(f"held-out pairs ranked right at sigma {level}: {', '.join(cells)}")
