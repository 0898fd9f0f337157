"""``nrg-sampler bench``: what guidance costs, counted and measured."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options

if TYPE_CHECKING:
    from nrg_sampler.evaluation.cost import CostRow

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
        choices=("separate", "shared"),
        default=["separate"],
        help="whose features the reward reads",
    )
    parser.add_argument(
        "--every", type=options.whole_number(1), nargs="+", default=[1, 2], metavar="N", help="guide each N-th step"
    )
    parser.add_argument("--checkpointing", action="store_true", help="compute the reward's activations twice")
    parser.add_argument("--n", type=options.whole_number(0), default=20, help="timed pairs of steps (default: 20)")
    parser.add_argument("--device", help="where to time (default: cuda if there is one, else cpu)")
    parser.add_argument("--dtype", choices=options.DTYPES, help="default: bfloat16, on the CPU float32")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row, for programs")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nrg_sampler.evaluation.cost import cost_rows
    from nrg_sampler.evaluation.workloads import WORKLOADS
    from nrg_sampler.recipe import default_device, present

    device = present(arguments.device or default_device())
    for name, mode in product(arguments.config, arguments.mode):
        half = device != "cpu" or name != "shapes"
        rows = cost_rows(
            WORKLOADS[name],
            arguments.blocks,
            mode=mode,
            every=arguments.every,
            checkpointing=arguments.checkpointing,
            device=device,
            dtype=getattr(torch, arguments.dtype or ("bfloat16" if half else "float32")),
            n=arguments.n,
        )
        if arguments.json:
            for row in rows:
                print(json.dumps(row.to_dict()), flush=True)
        else:
            print(table(rows, WORKLOADS[name].about), flush=True)
    return 0


def table(rows: Iterable[CostRow], about: str) -> str:
    """Lay the rows of one configuration out as Markdown."""
    lines = [
        "| config | mode | every | blocks | K measured | K counted | K predicted | memory MiB (unguided) | device |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        measured = "-" if row.k_time is None else f"{row.k_time:.2f}"
        mode = f"{row.mode}, checkpointed" if row.checkpointing else row.mode
        memory = f"{row.peak_memory_mib:.0f} ({row.unguided_memory_mib:.0f}), {row.memory}"
        numbers = f"{measured} | {row.k_flops:.2f} | {row.k_predicted:.2f} | {memory}"
        lines.append(f"| {row.config}, {about} | {mode} | {row.every} | {row.blocks} | {numbers} | {row.device} |")
    return "\n".join(lines)
