"""``nrg-sampler evaluate``: the tables of the documentation, made again."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nrg_sampler.cli import parser as options
from nrg_sampler.cli.parser import whole_number
from nrg_sampler.cli.progress import show
from nrg_sampler.evaluation.settings import PRESET, SPLITS, SUITES, EvaluationSettings
from nrg_sampler.json_text import to_json
from nrg_sampler.runs.device import ARITHMETIC, AUTO

if TYPE_CHECKING:
    from nrg_sampler.evaluation.document import Section

HELP = "Compare ways to sample on held-out prompts of the shapes world, graded by judges that do not guide."
EXAMPLE = "evaluate --suite weights --n 100 --out evaluation"
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite", default="weights", choices=(*SUITES, ALL), help="which table to make; all also writes report.md"
    )
    parser.add_argument("--n", type=int, default=100, help="held-out prompts, one seed each (default: 100)")
    parser.add_argument("--split", default="test", choices=SPLITS, help="prompts: tune on validation only")
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="only the unguided arm and these: names or weights, with settings as in '1:1:1 scale=2 max_push=0.2'",
    )
    parser.add_argument(
        "--judges",
        metavar="NAMES",
        help="who grades, as oracle,pixel:FOLDER (default: the oracle, and the pixel judge if there is one)",
    )
    parser.add_argument(
        "--reward", metavar="NAME", help="the reward that guides, as `generate` takes it (default: the bundled one)"
    )
    parser.add_argument("--clean-reward", type=Path, metavar="FOLDER", help="a reward trained on clean latents")
    parser.add_argument("--steps", type=whole_number(1), help="denoising steps (default: the model's)")
    parser.add_argument("--batch", type=whole_number(1), default=20, help="clips sampled together (default: 20)")
    parser.add_argument(
        "--dtype", default=AUTO, choices=ARITHMETIC, help="of the arithmetic (default: bfloat16 where it is native)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder for CSV, JSON, tables and plots (resumable)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a suite and judge, not the table")
    options.add_guidance(parser, PRESET)


def run(arguments: argparse.Namespace) -> int:
    settings = settings_from(arguments)
    from nrg_sampler.evaluation.run import evaluate

    report = _print_json if arguments.json else _print_table
    show(evaluate(settings, shlex.join(["nrg-sampler", *sys.argv[1:]]), report))
    if arguments.suite == ALL:
        print(f"nrg-sampler: wrote {arguments.out / 'report.md'}", file=sys.stderr)
    return 0


def _print_json(section: Section) -> None:
    for summary in section.summaries:
        print(to_json(summary), flush=True)


def _print_table(section: Section) -> None:
    from nrg_sampler.evaluation.report import captioned

    for summary in section.summaries:
        print(captioned(summary), flush=True)


def settings_from(arguments: argparse.Namespace) -> EvaluationSettings:
    """Return what the options ask for.

    Raises:
        ValueError: If a setting is out of its range or the device is absent.
    """
    from nrg_sampler.cli.recipe import guidance_from

    return EvaluationSettings(
        suites=SUITES if arguments.suite == ALL else (arguments.suite,),
        n=arguments.n,
        split=arguments.split,
        arms=arguments.arms,
        judges=None if arguments.judges is None else arguments.judges.split(","),
        reward=arguments.reward,
        clean_reward=arguments.clean_reward,
        steps=arguments.steps,
        batch=arguments.batch,
        dtype=arguments.dtype,
        device=arguments.device,
        out=arguments.out,
        guidance=guidance_from(arguments, PRESET),
    )
