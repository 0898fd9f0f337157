"""``nrg-sampler bench``: what guidance costs, counted and measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options
from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.frames import read_frames
from nrg_sampler.runs.device import DTYPES

if TYPE_CHECKING:
    from nrg_sampler.cost.rows import CostRow

HELP = "Count and measure what guidance costs: time, operations and memory of a guided step over an unguided one."
EXAMPLE = "bench --config shapes wan-1.3b --checkpointing"
NAMES = ("shapes", "wan-1.3b", "wan-14b", "ltx", "hunyuan", "sd3", "flux")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", nargs="+", choices=NAMES, default=["shapes"], help="networks at their usual size, random weights"
    )
    parser.add_argument(
        "--blocks", type=options.whole_number(1), metavar="N", help="blocks in the reward (default: a quarter)"
    )
    parser.add_argument(
        "--mode",
        nargs="+",
        choices=("separate", "shared", "strided"),
        default=["separate"],
        help="the reward runs its own forward pass, reads the model's features, or reads a part of the latents",
    )
    parser.add_argument(
        "--frames",
        type=_frames,
        default="every:2",
        metavar="FRAMES",
        help="latent frames that are read with --mode strided: every:N or middle (default: every:2)",
    )
    parser.add_argument(
        "--crop",
        type=options.number,
        default=1.0,
        metavar="F",
        help="share of height and width, likewise (default: 1)",
    )
    parser.add_argument(
        "--every", type=options.whole_number(1), nargs="+", default=[1, 2], metavar="N", help="guide each N-th step"
    )
    parser.add_argument(
        "--batch", type=options.whole_number(1), default=1, metavar="N", help="videos sampled at once (default: 1)"
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxWxF", help="of the video, as 240x416x33 (default: the model's usual one)"
    )
    parser.add_argument(
        "--checkpointing", action="store_true", help="save memory: compute the reward's linear layers twice"
    )
    parser.add_argument(
        "--compile", choices=("reward", "both"), help="compile the reward before it is timed, or the model too"
    )
    parser.add_argument("--n", type=options.whole_number(0), default=20, help="timed pairs of steps (default: 20)")
    parser.add_argument(
        "--weigh",
        action="store_true",
        help="take a step of each kind for real, and measure by how much the process grows (default: counted)",
    )
    parser.add_argument("--device", help="where to time (default: cuda if there is one, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, on the CPU float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row, for programs")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nrg_sampler.cost.rows import cost_rows
    from nrg_sampler.cost.workloads import WORKLOADS
    from nrg_sampler.runs.device import default_device, require_device

    device = require_device(arguments.device or default_device())
    for name, mode in product(arguments.config, arguments.mode):
        half = device != "cpu" or name != "shapes"
        usual = WORKLOADS[name]
        workload = (usual.sized(*arguments.size) if arguments.size else usual).at_once(arguments.batch)
        rows = cost_rows(
            workload,
            arguments.blocks,
            mode=mode,
            every=arguments.every,
            frames=arguments.frames,
            crop=arguments.crop,
            checkpointing=arguments.checkpointing,
            compiled=arguments.compile,
            device=device,
            dtype=getattr(torch, arguments.dtype or ("bfloat16" if half else "float32")),
            n=arguments.n,
            weigh=arguments.weigh,
        )
        if arguments.json:
            for row in rows:
                print(to_json(row.to_dict()), flush=True)
        else:
            print(table(rows, workload.about), flush=True)
    return 0


def _frames(text: str) -> str:
    try:
        return read_frames("frames", text) or "all"
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTHxFRAMES, as 240x416x33, but got {text!r}")
    height, width, frames = map(int, parts)
    return height, width, frames


def table(rows: Iterable[CostRow], about: str) -> str:
    """Lay the rows of one configuration out as Markdown."""
    lines = [
        "| config | mode | every | blocks | K measured | K counted | K predicted | memory MiB (unguided) | device |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = f"{row.peak_memory_mib:.0f} ({row.unguided_memory_mib:.0f}), {row.memory}"
        numbers = f"{_measured(row)} | {row.k_flops:.2f} | {row.k_predicted:.2f} | {memory}"
        lines.append(
            f"| {row.config}, {about} | {_mode(row)} | {row.every} | {row.blocks} | {numbers} | {row.device} |"
        )
    return "\n".join(lines)


def _measured(row: CostRow) -> str:
    return "-" if row.k_time is None else f"{row.k_time:.2f} [{row.k_time_low:.2f}, {row.k_time_high:.2f}]"


def _mode(row: CostRow) -> str:
    stride = [f"frames {row.frames}"] * (row.frames != "all")
    crop = [f"crop {row.crop:g}"] * (row.crop < 1)
    compiled = [f"{row.compiled} compiled"] if row.compiled else []
    return ", ".join([row.mode, *stride, *crop, *["checkpointed"] * row.checkpointing, *compiled])
