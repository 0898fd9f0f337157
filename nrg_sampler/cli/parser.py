"""Options that several subcommands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nrg_sampler.guidance import presets
from nrg_sampler.guidance.fields import GROUPS, Setting, Switch, settings_of
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.runs.device import DTYPES
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
BEYOND = 2**63  # what neither torch nor a file system counts
DEFAULT_FOLDER = Path("outputs")


class Hidden(str):
    """The help of an option that ``--help`` leaves out and ``--help-all`` shows."""


class ShortHelp(argparse.HelpFormatter):
    """A help without the options that are hidden."""

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *rest: Any, **named: Any) -> None:
        super().add_usage(usage, [action for action in actions if not isinstance(action.help, Hidden)], *rest, **named)

    def add_argument(self, action: argparse.Action) -> None:
        if not isinstance(action.help, Hidden):
            super().add_argument(action)


class HelpAll(argparse.Action):
    """Print the help with all options and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.formatter_class = argparse.HelpFormatter
        parser.print_help()
        parser.exit()


def add_help_all(parser: argparse.ArgumentParser) -> None:
    """Add ``--help-all`` where options are hidden."""
    if any(isinstance(action.help, Hidden) for action in parser._actions):
        about = "show the hidden options too and exit"
        parser.add_argument("--help-all", action=HelpAll, nargs=0, dest=argparse.SUPPRESS, help=about)


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
        if not lowest <= value < BEYOND:
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


def add_prompt(parser: argparse.ArgumentParser, required: bool = True, seeds: int = 1) -> None:
    """Add the prompt and how many videos of it, where to.

    Args:
        parser: Of a subcommand.
        required: Whether there has to be a prompt.
        seeds: How many videos where nothing is given.
    """
    parser.add_argument("prompt", metavar="PROMPT", nargs=None if required else "?", help="what the video shows")
    parser.add_argument("--seed", type=whole_number(0), metavar="N", help="seed of the first video (default: 0)")
    about = f"videos, one seed after another (default: {seeds}{', or 1 where a file is named' if seeds > 1 else ''})"
    parser.add_argument("--num", type=whole_number(1), metavar="N", help=about)
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
        help=Hidden("candidates of a stochastic solver, drawn anew by how their reading rises (default: 4 particles)"),
    )
    group.add_argument(
        "--lidar",
        metavar="WHO",
        help=Hidden(
            "let the scores of few-step samples pull the clip, without a gradient: who scores, reward or a judge's "
            "name, and settings, as 'pixel samples=4 scale=2'"
        ),
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add which pipeline and reward, and where they run."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME", help="'shapes' (bundled), a folder or a Hub id of a diffusers pipeline"
    )
    group.add_argument(
        "--reward",
        metavar="NAME",
        help="name (see `nrg-sampler rewards`), folder or Hub id of a reward, module:FILE.py:NAME, or several as "
        "aesthetic=1,clipscore=2 (default: the one with the pipeline)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    group.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on cuda, else float32)")
    _add_switch(
        group, "--checkpointing", Hidden("let the reward need less memory and a little more time, for large videos")
    )


def add_judges(parser: argparse.ArgumentParser) -> None:
    """Add who grades the finished video."""
    parser.add_argument(
        "--judge",
        action="append",
        metavar="NAME",
        help="who grades: oracle, pixel, vlm:URL#MODEL, pickscore or another name of "
        "`nrg-sampler rewards`, module:FILE.py:NAME; may be repeated",
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
    group.add_argument(
        "--fps", type=positive, metavar="N", help=Hidden("of the written file (default: the model's, else 16)")
    )


def add_guidance(
    parser: argparse.ArgumentParser, preset: str = presets.DEFAULT, kind: type[RewardGuidance] = RewardGuidance
) -> None:
    """Add the settings of the reward guidance.

    Their values stay text here, which :func:`nrg_sampler.cli.recipe.guidance_from` reads; ``None`` is not given.

    Args:
        parser: Of a subcommand.
        preset: What holds where nothing is given.
        kind: The class whose fields they are.
    """
    group = parser.add_argument_group("guidance")
    about = "; ".join(f"{name}, {where}" for name, where in presets.ABOUT.items())
    group.add_argument(
        "--preset",
        choices=list(presets.PRESETS),
        help=f"when the reward is evaluated: {about} (default: {preset}); its direction is reused between, and other "
        "options win",
    )
    group.add_argument(
        "--paper",
        action="store_true",
        help=Hidden("the published algorithm: scale 100, every step, no bound on the push"),
    )
    settings = settings_of(kind)
    group.add_argument(
        "--set",
        action="append",
        type=_assignment(settings),
        metavar="NAME=VALUE",
        help="any setting, also those that --help-all shows, as lookahead=0.1 or max_push=none; may be repeated",
    )
    for name, meaning in GROUPS.items():
        section = parser.add_argument_group(f"guidance, {name}: {meaning}")
        for setting in settings.values():
            if setting.group == name:
                _add_setting(section, setting)


def _add_setting(section: argparse._ArgumentGroup, setting: Setting) -> None:
    option = f"--{setting.option}"
    text = f"{setting.help} (default: {setting.usual})"
    about = text if setting.shown else Hidden(text)
    if isinstance(setting.kind, Switch):
        section.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=about)
    else:
        section.add_argument(option, type=_readable(setting), metavar=setting.kind.metavar, help=about)


def _readable(setting: Setting) -> Callable[[str], str]:
    """Return a converter that refuses text which is no value of the setting."""

    def convert(text: str) -> str:
        try:
            setting.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return convert


def _assignment(settings: dict[str, Setting]) -> Callable[[str], tuple[str, str]]:
    """Return a converter of ``NAME=VALUE``."""

    def convert(text: str) -> tuple[str, str]:
        name, sign, value = text.partition("=")
        if not sign or name not in settings:
            raise argparse.ArgumentTypeError(
                f"Expected NAME=VALUE with a name from {', '.join(settings)}, but got {text!r}"
            )
        return name, _readable(settings[name])(value)

    return convert


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
    return [next(iter(action.option_strings), f"the {action.dest}") for action in given]
