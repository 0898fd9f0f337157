"""What the commands on preference pairs have in common: options, and the way from a CSV file to encoded pairs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import DTYPES, positive, whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nrg_sampler.training.decoding import ClipSettings
    from nrg_sampler.training.prepare import Prepared

CLIP = {"height": "height", "width": "width", "frames": "num_frames", "fps": "fps"}


def share(text: str) -> float:
    """Convert to a number from 0 to 1."""
    value = float(text) if text.replace(".", "", 1).isdigit() else -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, but got {text!r}")
    return value


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """Add the preference file and how its clips are read."""
    parser.add_argument(
        "pairs", type=Path, nargs="?", metavar="PAIRS.csv", help="columns path_A, path_B, prompt and one per axis"
    )
    parser.add_argument("--model", metavar="NAME", default=BUNDLED, help="'shapes' (bundled), a folder or a Hub id")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model's weights while encoding")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="where relative paths start (default: at the CSV)")
    parser.add_argument(
        "--strict", action="store_true", help="stop at rows that cannot be used instead of skipping them"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for encoded clips (default: OUT/cache)")
    parser.add_argument("--cpu", action="store_true", help="use no accelerator")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    group = parser.add_argument_group(
        "clips (default: as the model was made for)",
        "Frame k is the one nearest to k / fps seconds; it is scaled until it covers the size and cut around the centre.",
    )
    group.add_argument("--height", type=whole_number(1), metavar="PX")
    group.add_argument("--width", type=whole_number(1), metavar="PX")
    group.add_argument("--frames", type=whole_number(1), metavar="N", help="shorter files cannot be used")
    group.add_argument("--fps", type=positive, metavar="N", help="frames a second to sample")


def given_clip(arguments: argparse.Namespace) -> dict[str, Any]:
    """The clip options that were given, by the names of ``ClipSettings``."""
    return {
        name: getattr(arguments, option) for option, name in CLIP.items() if getattr(arguments, option) is not None
    }


def load_pipeline(arguments: argparse.Namespace, device: Any) -> Any:
    """Load the pipeline without its reward."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from nrg_sampler.hosts.pipeline import NRGFlowPipeline

    if not sys.stderr.isatty():
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    pipe = NRGFlowPipeline.from_pretrained(arguments.model, reward_model=None, dtype=getattr(torch, arguments.dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def encoded(
    arguments: argparse.Namespace, pipe: Any, settings: ClipSettings, axes: Sequence[str] | None, quiet: bool = False
) -> Prepared:
    """Read, check and encode the pairs with a progress bar, and list the bad rows on stderr.

    Raises:
        ValueError: If no file is named, or none of its rows can be used.
    """
    if arguments.pairs is None:
        raise ValueError("Expected PAIRS.csv with labels, or a --teacher to do without, but got neither.")
    from tqdm.auto import tqdm

    from nrg_sampler.training.prepare import prepare_pairs

    cache = arguments.cache or arguments.out / "cache"
    steps = prepare_pairs(
        arguments.pairs, pipe, arguments.model, settings, cache, axes, arguments.videos, arguments.strict
    )
    prepared = None
    with tqdm(unit="file", disable=quiet or not sys.stderr.isatty()) as bar:
        for work, done, prepared in steps:
            bar.set_description(work)
            bar.n = done
            bar.refresh()
    assert prepared is not None  # an empty table is refused
    if not quiet:
        for bad in prepared.table.bad:
            print(f"nrg-sampler: left out: {bad}", file=sys.stderr)
    return prepared
