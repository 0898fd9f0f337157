"""Options that several subcommands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from nrg_sampler.schedulers import SCHEDULERS

# option -> argument of the pipeline call
SAMPLING = {
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "negative_prompt": "negative_prompt",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
}
# option and field of RewardGuidance alike
GUIDANCE = (
    "weights",
    "scale",
    "start",
    "stop",
    "every",
    "reuse",
    "max_coefficient",
    "max_push",
    "damping",
    "fading",
    "balanced",
    "conflicts",
    "floor",
    "parallel",
    "disagreement",
    "lookahead",
    "smoothing",
    "smoothing_samples",
    "forward",
    "frame_stride",
    "crop",
)
CONFLICTS, FORWARDS = (
    ("sum", "project"),
    ("separate", "shared"),
)  # as in nrg_sampler.guidance.settings, which would bring torch in
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_FOLDER = Path("outputs")


class OneLineParser(argparse.ArgumentParser):
    """Say what is wrong in one line and point to ``--help``, instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        self.exit(2, f"nrg-sampler: error: {line.rstrip('.')} (see {self.prog} --help)\n")


def whole_number(lowest: int) -> Callable[[str], int]:
    """Return a converter to a whole number of at least ``lowest``."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, but got {text!r}")
        return value

    return convert


def number(text: str) -> float:
    """Convert to a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, but got {text!r}")
    return value


def positive(text: str) -> float:
    """Convert to a finite number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, but got {text!r}")
    return value


def add_prompt(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the prompt and how many videos of it, where to."""
    parser.add_argument("prompt", metavar="PROMPT", nargs=None if required else "?", help="what the video shows")
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="seed of the first video (default: 0)")
    parser.add_argument("--num", type=whole_number(1), metavar="N", help="videos, one seed after another (default: 1)")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help=f"a folder, or one .mp4 file (default: {DEFAULT_FOLDER})"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a video, for programs")


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add how many candidates a video is chosen from."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--best-of", type=whole_number(1), metavar="N", help="sample N candidates and keep the reward's favourite"
    )
    group.add_argument(
        "--search",
        action="store_true",
        help="give candidates up on the way, by the reward's reading of their noisy latents (default: 6 candidates)",
    )
    group.add_argument(
        "--particles",
        action="store_true",
        help="candidates of a stochastic solver, drawn anew by how their reading rises (default: 4 particles)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add which pipeline and reward, and where they run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME", help="'shapes' (bundled), a folder or a Hub id of a diffusers pipeline"
    )
    group.add_argument(
        "--reward", metavar="NAME", help="folder or Hub id of a reward (default: the one with the pipeline)"
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    group.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on cuda, else float32)")
    _add_switch(group, "--checkpointing", "let the reward need less memory and a little more time, for large videos")


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Add who grades the finished video."""
    parser.add_argument(
        "--judge",
        action="append",
        metavar="NAME",
        help="who grades: oracle, pixel, videoreward:FOLDER, module:FILE.py:NAME; may be repeated",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the pipeline's own arguments; left out, they are what the model was made for."""
    group = parser.add_argument_group("sampling (default: as the model was made for)")
    group.add_argument("--steps", type=whole_number(1), metavar="N", help="denoising steps")
    group.add_argument("--guidance-scale", type=number, metavar="X", help="classifier-free guidance")
    group.add_argument("--negative-prompt", metavar="TEXT", help="what the video should not show")
    group.add_argument("--height", type=whole_number(1), metavar="PX")
    group.add_argument("--width", type=whole_number(1), metavar="PX")
    group.add_argument("--frames", type=whole_number(1), metavar="N")
    group.add_argument("--scheduler", choices=sorted(SCHEDULERS), help="solver (default: the model's own)")
    group.add_argument("--fps", type=positive, metavar="N", help="of the written file (default: the model's, else 16)")


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the settings of the reward guidance."""
    group = parser.add_argument_group("reward guidance")
    group.add_argument("--weights", metavar="VQ:MQ:TA", help="one weight an axis, as 1:1:1 or VQ=1,TA=0.5, or auto")
    group.add_argument("--scale", type=number, metavar="X", help="strength; 0 is the unguided pipeline")
    group.add_argument("--start", type=number, metavar="F", help="guide from this fraction of the steps on, 0 to 1")
    group.add_argument("--stop", type=number, metavar="F", help="guide up to this fraction of the steps, 0 to 1")
    group.add_argument("--every", type=whole_number(1), metavar="N", help="ask the reward in every N-th step only")
    _add_switch(group, "--reuse", "push with the last direction in the steps between")
    group.add_argument("--max-coefficient", type=number, metavar="X", help="upper bound of sigma / (1 - sigma)")
    group.add_argument("--max-push", type=number, metavar="X", help="upper bound of the push, in velocity norms")
    group.add_argument(
        "--damping",
        metavar="P",
        help="weaken gradients by (1 - sigma) to this power, as 1 or VQ=0,TA=1.5 (default: as the reward recommends)",
    )
    group.add_argument(
        "--fading",
        metavar="Q",
        help="weaken gradients by sigma to this power, as 2 or VQ=4,TA=0 (default: as the reward recommends)",
    )
    _add_switch(group, "--balanced", "give the gradients of the axes one norm")
    group.add_argument("--conflicts", choices=CONFLICTS, help="project what axes have against each other out of them")
    group.add_argument("--floor", metavar="AXES", help="axes that the push must not lower, as TA or VQ,TA")
    group.add_argument(
        "--lookahead",
        type=number,
        metavar="F",
        help="read the latents this far along their path, 0 to 1, which is the predicted clean ones (default: 0)",
    )
    group.add_argument("--parallel", type=number, metavar="F", help="share kept of the push along the clean latents")
    group.add_argument(
        "--disagreement",
        type=number,
        metavar="X",
        help="push less along what the members of the reward disagree about: mean minus X deviations",
    )
    group.add_argument(
        "--smoothing", type=number, metavar="F", help="average the gradient over this share of the noise"
    )
    group.add_argument(
        "--smoothing-samples", type=whole_number(1), metavar="N", help="gradients in that average (default: 4)"
    )
    group.add_argument(
        "--forward", choices=FORWARDS, help="let the reward run on its own, or read the features of the denoiser"
    )
    group.add_argument(
        "--frame-stride", type=whole_number(1), metavar="N", help="let the reward read each N-th latent frame only"
    )
    group.add_argument("--crop", type=number, metavar="F", help="share of height and width that the reward reads")
    group.add_argument("--paper", action="store_true", help="the published algorithm: scale 100, no bound on the push")


def _add_switch(group: argparse._ArgumentGroup, name: str, meaning: str) -> None:
    """Add a flag that is None unless given, as the other options are."""
    group.add_argument(name, action="store_const", const=True, help=meaning)


def options_given(
    arguments: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None], besides: Sequence[str]
) -> list[str]:
    """Name the options of a subcommand that somebody gave.

    Args:
        arguments: What was parsed.
        add_arguments: Declares the options of the subcommand.
        besides: Options that do not count, by their names in ``arguments``.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    counted = [action for action in parser._actions if action.dest not in besides]
    given = [action for action in counted if getattr(arguments, action.dest) != action.default]
    return [max(action.option_strings, key=len, default=f"the {action.dest}") for action in given]
