"""What `train-reward` and `evaluate-reward` have in common: options that name the data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import positive, whole_number
from nrg_sampler.runs.device import AUTO, DTYPES

if TYPE_CHECKING:
    from nrg_sampler.training.settings import DataSettings, EncodingSettings

# option -> field of EncodingSettings
ENCODING = {"model": "model", "dtype": "dtype", "cache": "cache", "height": "height", "width": "width"}
ENCODING |= {"frames": "num_frames", "fps": "fps"}
# option -> field of TeacherClips
TEACHER = {"teacher": "teacher", "pairs": "files", "videos": "videos", "prompts": "prompts", "clips": "num_clips"}
TEACHER |= {"clips_per_prompt": "clips_per_prompt", "other_prompts": "other_prompts", "clip_batch": "batch"}
TEACHER |= {"clip_seed": "seed", "sampling_steps": "sampling_steps", "guidance_scales": "guidance_scales"}


def share(text: str) -> float:
    """Convert to a number from 0 to 1."""
    value = float(text) if text.replace(".", "", 1).isdigit() else -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, but got {text!r}")
    return value


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Add the preference file and how its clips are encoded."""
    parser.add_argument(
        "pairs", type=Path, nargs="?", metavar="PAIRS.csv", help="columns path_A, path_B, prompt and one per axis"
    )
    parser.add_argument("--model", metavar="NAME", default=BUNDLED, help="'shapes' (bundled), a folder or a Hub id")
    parser.add_argument(
        "--dtype",
        choices=(AUTO, *DTYPES),
        help="of the model's weights while encoding (default: auto, bfloat16 where it is fast, else float32)",
    )
    parser.add_argument("--videos", type=Path, metavar="DIR", help="where relative paths start (default: at the CSV)")
    parser.add_argument(
        "--strict", action="store_true", help="stop at rows, columns and files in doubt instead of skipping them"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for encoded clips (default: OUT/cache)")
    parser.add_argument("--cpu", action="store_true", help="use no accelerator")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    group = parser.add_argument_group(
        "clips (default: as the model was made for)",
        "Frame k is the one nearest to k / fps seconds, scaled to cover the size and cropped around the centre.",
    )
    group.add_argument("--height", type=whole_number(1), metavar="PX")
    group.add_argument("--width", type=whole_number(1), metavar="PX")
    group.add_argument("--frames", type=whole_number(1), metavar="N", help="shorter files cannot be used")
    group.add_argument("--fps", type=positive, metavar="N", help="frames a second to sample")


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Add the teacher whose scores replace labels, and its clips."""
    group = parser.add_argument_group(
        "teacher (instead of labels)",
        "Clips are samples of the model (--prompts), video files (a CSV with path and prompt, or a folder, in place "
        "of PAIRS.csv), or both.",
    )
    group.add_argument(
        "--teacher",
        metavar="NAME",
        help="who scores: pixel, pixel:FOLDER, videoreward:FOLDER, a name of `nrg-sampler rewards`, "
        "module:FILE.py:NAME, oracle",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="sample clips of these prompts, one a line; the bundled world's are 'shapes', 'shapes:validation' and "
        "'shapes:test'",
    )
    group.add_argument("--clips", type=whole_number(1), metavar="N", help="how many to sample (1000)")
    group.add_argument("--clips-per-prompt", type=whole_number(1), metavar="N", help="of those (4)")
    group.add_argument(
        "--sampling-steps", type=whole_number(1), nargs="+", metavar="N", help="drawn from (0.4, 0.6, 1 x the model's)"
    )
    group.add_argument(
        "--guidance-scales", type=positive, nargs="+", metavar="X", help="drawn from (0.25 to 1.5 x the model's)"
    )
    group.add_argument(
        "--other-prompts",
        type=whole_number(0),
        metavar="K",
        help="score each clip under K prompts of other clips too, half of them much like its own (3)",
    )
    group.add_argument(
        "--trajectories",
        dest="along",
        action="store_true",
        help="keep the sampler's own steps to each clip and read them there, at the model's steps and scale",
    )
    group.add_argument("--clip-batch", type=whole_number(1), metavar="N", help="clips sampled and scored together (4)")
    group.add_argument("--clip-seed", type=whole_number(0), metavar="N", help="of the first sample (0)")


def given(arguments: argparse.Namespace, fields: dict[str, str]) -> dict[str, Any]:
    """Return the options that were given, by the names of the fields that they set."""
    values = {field: getattr(arguments, option) for option, field in fields.items()}
    return {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in values.items()
        if value is not None
    }


def encoding_settings(arguments: argparse.Namespace) -> EncodingSettings:
    """Return how clips are encoded."""
    from nrg_sampler.training.settings import EncodingSettings

    return EncodingSettings(**given(arguments, ENCODING))


def data_settings(arguments: argparse.Namespace, **labelled: Any) -> DataSettings:
    """Return the labelled pairs, or the clips that a teacher scores.

    Args:
        arguments: The options.
        **labelled: Further fields of ``LabelledPairs``.

    Raises:
        ValueError: If neither is named, or options do not go together.
    """
    from nrg_sampler.training.along import LEVELS
    from nrg_sampler.training.settings import LabelledPairs, TeacherClips

    if arguments.teacher is not None:
        levels = LEVELS if arguments.along else ()
        return TeacherClips(strict=arguments.strict, levels=levels, **given(arguments, TEACHER))
    if arguments.along:
        raise ValueError("Expected --teacher NAME and --prompts beside --trajectories, but got no teacher.")
    if arguments.prompts is not None:
        raise ValueError("Expected --teacher NAME beside --prompts, to score the samples, but got none.")
    if arguments.pairs is None:
        raise ValueError("Expected PAIRS.csv with labels, or a --teacher to do without, but got neither.")
    return LabelledPairs(arguments.pairs, videos=arguments.videos, strict=arguments.strict, **labelled)
