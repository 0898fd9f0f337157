"""``nrg-sampler compare``: the same seeds without and with the reward, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options
from nrg_sampler.json_text import to_json

if TYPE_CHECKING:
    from nrg_sampler.runs.manifest import Manifest

HELP = "Sample the same seeds without and with the reward, and say what changed, with Student's interval."
EXAMPLE = 'compare "a red circle moving right"'
SEEDS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_prompt(parser, seeds=SEEDS)
    parser.add_argument(
        "--plan", action="store_true", help="say what it would cost, after timing two steps, and write nothing"
    )
    options.add_model(parser)
    options.add_sampling(parser)
    options.add_guidance(parser)
    options.add_judges(parser)


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.cli.batch import run_seeds

    return run_seeds(arguments, SEEDS, conclude)


def conclude(manifests: Sequence[Manifest], videos: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Write one picture of all seeds, and print how the axes changed on average and in how many of the seeds.

    Args:
        manifests: One for each seed.
        videos: Their files.
        arguments: The options.
    """
    from nrg_sampler.cli.batch import print_alarm
    from nrg_sampler.judges.alarm import hacking_alarm
    from nrg_sampler.runs.manifest import changes
    from nrg_sampler.runs.outcome import format_summary, mean_changes, summarise_changes, summary_entries

    strip = _write_strip(arguments.out, manifests, videos)
    summary = summarise_changes([changes(manifest.clips) for manifest in manifests])
    mean = mean_changes(summary)
    if arguments.json:
        alarm = hacking_alarm(mean, manifests[0].weighted_axes())
        seeds = [manifest.seed for manifest in manifests]
        print(to_json({"seeds": seeds, "strip": str(strip), "mean": summary_entries(summary), "alarm": alarm}))
        return
    print(f"{strip}  (all seeds)")
    if len(manifests) > 1:
        print(f"  mean of {len(manifests)} seeds [95 % t-interval]")
        for judge, axes in summary.items():
            print(f"  {judge}  {format_summary(axes)}", flush=True)
        print_alarm(mean, manifests[0])


def _write_strip(out: Path | None, manifests: Sequence[Manifest], videos: Sequence[Path]) -> Path:
    """Write the picture and return where: beside a named file it is replaced, in a folder its name is free."""
    from nrg_sampler.cli.batch import is_file
    from nrg_sampler.files import partial_path, slug, with_free_name
    from nrg_sampler.runs.strip import write_compare_strip
    from nrg_sampler.runs.writing import strip_of_all

    if is_file(out):
        strip = strip_of_all(videos[0])
        write_compare_strip(manifests, videos, strip)
        return strip
    strip = videos[0].with_name(f"{slug(manifests[0].recipe.prompt)}-compare.png")
    write_compare_strip(manifests, videos, partial_path(strip))
    return with_free_name(partial_path(strip), strip)
