"""``nrg-sampler env``: what a bug report needs."""

from __future__ import annotations

import argparse
import os
import platform

from nrg_sampler.json_text import to_json

HELP = "Print the versions of everything that matters, for a bug report."
EXAMPLE = "env --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    found = describe()
    if arguments.json:
        print(to_json(found))
    else:
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name:<{width}}  {value}")
    return 0


def describe() -> dict[str, str]:
    """Return versions, platform, cores and accelerators, by name."""
    import imageio_ffmpeg
    import torch

    from nrg_sampler.runs.manifest import versions

    cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        **versions(),
        "ffmpeg": imageio_ffmpeg.get_ffmpeg_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "cuda": f"{torch.version.cuda}: {', '.join(cards)}" if cards else "none",
    }
