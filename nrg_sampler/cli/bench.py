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
    from nrg_sampler.cost.pixels import PixelCost
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
        metavar="FRAMES",
        help="latent frames that are read with --mode strided (default: every:2), or that a --reward looks at "
        "(default: as it recommends)",
    )
    parser.add_argument(
        "--reward",
        nargs="+",
        metavar="NAME",
        help="rewards of `nrg-sampler rewards` on pixels, in place of a latent one: counted, at their published sizes",
    )
    parser.add_argument("--offload", action="store_true", help="the judge of --reward rests off the device")
    parser.add_argument("--half", action="store_true", help="judge and decoder of --reward compute in bfloat16")
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

    if arguments.reward:
        return _named(arguments)
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
            frames=arguments.frames or "every:2",
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


def _named(arguments: argparse.Namespace) -> int:
    """Count what rewards on pixels cost."""
    import torch

    from nrg_sampler.cost.pixels import pixel_costs
    from nrg_sampler.cost.published import JUDGES
    from nrg_sampler.cost.workloads import WORKLOADS
    from nrg_sampler.guidance.settings import RewardGuidance
    from nrg_sampler.rewards.named.table import find

    entries = [find(name) for name in arguments.reward]
    for name, entry in zip(arguments.reward, entries, strict=True):
        if entry is None or entry.name not in JUDGES:
            raise ValueError(f"Expected rewards from {', '.join(JUDGES)}, but got {name!r}; count one of these.")
    names = [entry.name for entry in entries if entry is not None]
    guidance = RewardGuidance(frames=arguments.frames, offload=arguments.offload, half=arguments.half)
    dtype = getattr(torch, arguments.dtype or "bfloat16")
    if not arguments.json:
        print(NAMED_HEAD, flush=True)
    for config in arguments.config:
        usual = WORKLOADS[config]
        workload = (usual.sized(*arguments.size) if arguments.size else usual).at_once(arguments.batch)
        for row in pixel_costs(workload, names, guidance, every=arguments.every, dtype=dtype):
            print(to_json(row.to_dict()) if arguments.json else named_line(row), flush=True)
    return 0


NAMED_HEAD = """| config | reward | frames | every | K counted | memory GiB (unguided) | fits 24 GB |
|---|---|---|---|---|---|---|"""
CARD, RESERVE = 24.0, 1.0  # GiB; of the second is what the driver and the pieces between tensors take


def named_line(row: PixelCost) -> str:
    """Return a line of the table of rewards on pixels."""
    guided, plain = (value / 1024 for value in (row.peak_memory_mib, row.unguided_memory_mib))
    fits = ["yes" if value <= CARD - RESERVE else "no" for value in (guided, plain)]
    verdict = fits[0] if fits[0] == fits[1] == "yes" else f"{fits[0]} (unguided: {fits[1]})"
    options = "".join(f", {name}" for name in ("offload", "half") if getattr(row, name))
    memory = f"{guided:.1f} ({plain:.1f})"
    cells = (f"{row.config}, {row.about}", f"`{row.reward}`{options}", row.frames, str(row.every))
    return f"| {' | '.join([*cells, f'{row.k_flops:.2f}', memory, verdict])} |"


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
