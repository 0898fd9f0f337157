"""``nrg-sampler evaluate``: the tables of the README, made again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HELP = "Compare guided and unguided sampling on held-out prompts of the shapes world, graded by its oracle."
EXAMPLE = "evaluate --suite weights --n 100 --out evaluation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="weights", choices=("weights",), help="which table to make")
    parser.add_argument("--n", type=int, default=100, help="held-out prompts, one seed each (default: 100)")
    parser.add_argument(
        "--split", default="test", choices=("validation", "test"), help="prompts: tune on validation only"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms and the unguided one (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="reward scale (default: 1)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--batch", type=int, default=10, help="clips sampled together (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for the CSV, JSON and table")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from nrg_sampler import NRGFlowPipeline, RewardGuidance
    from nrg_sampler.evaluation.arms import SUITES
    from nrg_sampler.evaluation.grading import grade_arms
    from nrg_sampler.evaluation.report import markdown, summarise
    from nrg_sampler.shapes.scenes import prompts

    chosen = prompts(arguments.split)
    if not 1 <= arguments.n <= len(chosen):
        raise ValueError(
            f"Expected --n between 1 and {len(chosen)}, the prompts of that split, but got {arguments.n}."
        )
    arms = SUITES[arguments.suite](RewardGuidance(scale=arguments.scale))
    if arguments.arms:
        unknown = set(arguments.arms) - {arm.name for arm in arms}
        if unknown:
            names = ", ".join(repr(arm.name) for arm in arms)
            raise ValueError(f"Expected --arms from {names}, but got {', '.join(map(repr, sorted(unknown)))}.")
        arms = [arm for arm in arms if arm.guidance is None or arm.name in arguments.arms]
    stem = arguments.out / f"{arguments.suite}-{arguments.split}"
    _same_settings(stem.with_suffix(".settings.json"), arguments)
    pipe = NRGFlowPipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    sampling = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    graded = grade_arms(pipe, arms, chosen[: arguments.n], stem.with_suffix(".csv"), batch=arguments.batch, **sampling)
    summary = summarise(arguments.suite, arms, list(tqdm(graded, total=arguments.n * len(arms), unit="clip")))
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    stem.with_suffix(".md").write_text(markdown(summary) + "\n")
    print(json.dumps(summary) if arguments.json else markdown(summary))
    return 0


def _same_settings(file: Path, arguments: argparse.Namespace) -> None:
    """Refuse to continue a CSV whose clips were sampled otherwise.

    Raises:
        ValueError: If the folder holds clips of other settings or another model, or cannot be written.
    """
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.files import writable_folder
    from nrg_sampler.manifest import model_fingerprint

    models = {part: model_fingerprint(str(bundled_folder(part))) for part in ("pipeline", "reward")}
    settings = {"scale": arguments.scale, "steps": arguments.steps, **models}
    writable_folder(arguments.out)
    if file.exists() and json.loads(file.read_text()) != settings:
        raise ValueError(
            f"Expected clips sampled with {settings} in {arguments.out}, but {file.name} says otherwise; "
            "name another folder with --out."
        )
    file.write_text(json.dumps(settings, indent=2) + "\n")
