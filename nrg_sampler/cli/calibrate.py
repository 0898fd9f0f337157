"""``nrg-sampler calibrate``: standard units and a strength for a reward, from a model's own samples."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli import parser as options
from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.frames import read_frames
from nrg_sampler.runs.device import DTYPES

if TYPE_CHECKING:
    from nrg_sampler.rewards.calibration import Calibration

HELP = "Measure mean and deviation of a reward over a model's samples, and propose a strength."
EXAMPLE = "calibrate pickscore --model FOLDER --prompts prompts.txt"
# The bundled judge of pixels, which takes prompts and guides for a measurement only.
BUNDLED_JUDGE = {"pixel": "module:nrg_sampler.judges.shapes:GuidingPixelJudge"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reward",
        metavar="REWARD",
        help="a reward as for --reward, or pixel, the bundled judge",
    )
    parser.add_argument("--model", default=BUNDLED, metavar="NAME", help="as for generate (default: shapes)")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one prompt a line, as the model will be used (default for shapes: its validation prompts)",
    )
    parser.add_argument("--n", type=options.whole_number(2), default=16, help="unguided samples (default: 16)")
    parser.add_argument(
        "--share",
        type=options.positive,
        default=0.15,
        metavar="F",
        help="push over velocity in the first third of the steps that the strength is to reach (default: 0.15)",
    )
    parser.add_argument(
        "--probes", type=options.whole_number(1), default=4, metavar="N", help="samples with a gradient (default: 4)"
    )
    parser.add_argument(
        "--reward-frames", type=_frames, metavar="FRAMES", help="latent frames to look at (default: as it recommends)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: REWARD.json")
    parser.add_argument("--steps", type=options.whole_number(4), metavar="N", help="denoising steps")
    parser.add_argument("--height", type=options.whole_number(1), metavar="PX")
    parser.add_argument("--width", type=options.whole_number(1), metavar="PX")
    parser.add_argument("--frames", type=options.whole_number(1), metavar="N")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on cuda, else float32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from nrg_sampler.files import slug, writable_file
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline
    from nrg_sampler.rewards.by_name import require_known, reward_for
    from nrg_sampler.runs.calibrate import calibrate
    from nrg_sampler.runs.device import default_device, require_device, weights_dtype
    from nrg_sampler.runs.sampler import quiet_unless_watched

    name = BUNDLED_JUDGE.get(arguments.reward, arguments.reward)
    prompts = _prompts(arguments)
    require_known(name)
    file = writable_file(arguments.out or Path(f"{slug(arguments.reward)}.json"))
    device = require_device(arguments.device or default_device())
    quiet_unless_watched()
    dtype = getattr(torch, arguments.dtype or weights_dtype(arguments.model, device))
    pipe = NRGFlowPipeline.from_pretrained(arguments.model, reward_model=None, dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    found = calibrate(
        pipe,
        reward_for(pipe, name),
        name,
        arguments.model,
        prompts,
        arguments.n,
        share=arguments.share,
        probes=arguments.probes,
        frames=arguments.reward_frames,
        progress=lambda text: print(text, file=sys.stderr, flush=True) if sys.stderr.isatty() else None,
        **{
            option: value
            for option, value in (
                ("num_inference_steps", arguments.steps),
                ("height", arguments.height),
                ("width", arguments.width),
                ("num_frames", arguments.frames),
            )
            if value is not None
        },
    )
    found.write(file)
    print(to_json({**found.to_dict(), "file": str(file)}) if arguments.json else report(found, file), flush=True)
    return 0


def report(found: Calibration, file: Path) -> str:
    """Return what was measured, for a terminal."""
    width = max(map(len, ("axis", *found.axes)))
    lines = [f"{'axis':<{width}}  {'mean':>10}  {'deviation':>10}"]
    for axis, mean, std in zip(found.axes, found.mean, found.std, strict=True):
        lines.append(f"{axis:<{width}}  {mean:>10.4g}  {std:>10.4g}")
    return "\n".join(
        [
            *lines,
            f"of {found.n} unguided samples of {found.model}, by the latent frames {found.frames!r}",
            f"strength {found.recommended_scale:g}: a push of {found.share:.0%} of the velocity in the first third of "
            f"the steps, by {found.probes} samples",
            f"{file}: guide with `--reward {file}` or `attach(pipe, {str(file)!r})`, whose scale 1 is that strength",
        ]
    )


def _prompts(arguments: argparse.Namespace) -> list[str]:
    if arguments.prompts is None:
        if arguments.model != BUNDLED:
            raise ValueError(
                f"Expected --prompts with a file of prompts for {arguments.model}, but got none; a reward's mean and "
                "deviation are those of the prompts that the model is used with."
            )
        from nrg_sampler.shapes.scenes import caption, prompts

        return [caption(prompt) for prompt in prompts("validation")]
    lines = arguments.prompts.read_text(encoding="utf-8-sig").splitlines()
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"Expected one prompt a line in {arguments.prompts}, but it is empty; write some.")
    return found


def _frames(text: str) -> Any:
    try:
        return read_frames("reward-frames", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
