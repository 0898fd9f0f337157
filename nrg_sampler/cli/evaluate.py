"""``nrg-sampler evaluate``: the tables of the README, made again."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli import parser as options
from nrg_sampler.cli.parser import whole_number

if TYPE_CHECKING:
    from nrg_sampler.evaluation.arms import Arm
    from nrg_sampler.evaluation.sampling import ArmSampler

HELP = "Compare ways to sample on held-out prompts of the shapes world, graded by judges that do not guide."
EXAMPLE = "evaluate --suite weights --n 100 --out evaluation"
SUITES = ("weights", "noise-aware", "rivals", "scale-sweep")
EQUAL = "1:1:1"
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="weights", choices=(*SUITES, "all"), help="which table to make")
    parser.add_argument("--n", type=int, default=100, help="held-out prompts, one seed each (default: 100)")
    parser.add_argument(
        "--split", default="test", choices=("validation", "test"), help="prompts: tune on validation only"
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms and the unguided one (default: all)")
    parser.add_argument(
        "--judges", default="oracle", metavar="NAMES", help="who grades, as oracle,pixel or oracle,videoreward:FOLDER"
    )
    parser.add_argument("--reward", metavar="FOLDER", help="the reward that guides (default: the bundled one)")
    parser.add_argument("--clean-reward", type=Path, metavar="FOLDER", help="a reward trained on clean latents")
    parser.add_argument("--steps", type=whole_number(1), help="denoising steps (default: the model's)")
    parser.add_argument("--batch", type=whole_number(1), default=10, help="clips sampled together (default: 10)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the arithmetic (default: float32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for CSV, JSON, table and plot")
    parser.add_argument("--json", action="store_true", help="print one JSON object a suite and judge, not the table")
    options.add_guidance(parser)


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.cli.recipe import guidance_from
    from nrg_sampler.evaluation.panel import panel
    from nrg_sampler.evaluation.sampling import ArmSampler
    from nrg_sampler.shapes.scenes import prompts

    chosen = prompts(arguments.split)
    if not 1 <= arguments.n <= len(chosen):
        raise ValueError(
            f"Expected --n between 1 and {len(chosen)}, the prompts of that split, but got {arguments.n}."
        )
    guidance = guidance_from(arguments)
    if arguments.weights is None:
        guidance = replace(guidance, weights=EQUAL)
    judges = panel(arguments.judges.split(","))
    chosen_suites = SUITES if arguments.suite == "all" else (arguments.suite,)
    arms_of = {suite: _arms(suite, guidance, arguments.arms) for suite in chosen_suites}
    pipe, rewards = _models(arguments)
    sampling = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
    sampler = ArmSampler(pipe, rewards, judges, _dtype(arguments.dtype), sampling)
    for suite, every in arms_of.items():
        arms = _possible(suite, every, sampler)
        stem = arguments.out / f"{suite}-{arguments.split}"
        _same_settings(stem.with_suffix(".settings.json"), arguments, guidance)
        for summary in _grade(suite, arms, sampler, chosen[: arguments.n], stem, judges, arguments.batch):
            _report(summary, stem, arguments)
    return 0


def _models(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The bundled pipeline, and the rewards besides its own that arms name."""
    from nrg_sampler import NRGFlowPipeline
    from nrg_sampler.checkpoints import load_reward
    from nrg_sampler.evaluation.controls import RandomDirection, pixel_control
    from nrg_sampler.evaluation.judge import load_pixel_judge
    from nrg_sampler.sampler import quiet_unless_watched

    quiet_unless_watched()
    reward = arguments.reward or BUNDLED
    pipe: Any = NRGFlowPipeline.from_pretrained(BUNDLED, reward_model=reward).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    rewards: dict[str, Any] = {"random": RandomDirection(pipe.reward_model)}
    if arguments.clean_reward is not None:
        rewards["clean"] = load_reward(arguments.clean_reward).to(arguments.device)
    with contextlib.suppress(ValueError):  # where no pixel judge is installed, its arm is left out
        rewards["pixel"] = pixel_control(load_pixel_judge(), pipe).to(arguments.device)
    return pipe, rewards


def _dtype(name: str) -> Any:
    import torch

    return None if name == "float32" else getattr(torch, name)


def _arms(suite: str, guidance: Any, wanted: Sequence[str] | None) -> list[Arm]:
    """The arms of a suite, or the wanted ones and the unguided one.

    Raises:
        ValueError: If ``wanted`` names an arm that the suite does not have.
    """
    from nrg_sampler.evaluation import arms as suites

    every = suites.SUITES[suite](guidance)
    if not wanted:
        return every
    unknown = set(wanted) - {arm.name for arm in every}
    if unknown:
        names = ", ".join(repr(arm.name) for arm in every)
        raise ValueError(f"Expected --arms from {names}, but got {', '.join(map(repr, sorted(unknown)))}.")
    return [arm for arm in every if arm.name == suites.UNGUIDED or arm.name in wanted]


def _possible(suite: str, arms: Sequence[Arm], sampler: ArmSampler) -> list[Arm]:
    """Leave out what cannot be sampled here, and say so."""
    missing = [arm.name for arm in arms if not sampler.can(arm)]
    if missing:
        hint = "name the reward with --clean-reward FOLDER, the judge with --judges"
        print(f"nrg-sampler: {suite}: left out {', '.join(map(repr, missing))}; {hint}.", file=sys.stderr)
    return [arm for arm in arms if sampler.can(arm)]


def _grade(
    suite: str,
    arms: Sequence[Arm],
    sampler: ArmSampler,
    prompts: Sequence[Any],
    stem: Path,
    judges: dict[str, Any],
    batch: int,
) -> list[dict[str, Any]]:
    from tqdm.auto import tqdm

    from nrg_sampler.evaluation.grading import DIVERSITY_SEEDS, diversity_of_arms, grade_arms
    from nrg_sampler.evaluation.report import summarise

    graded = grade_arms(sampler, arms, prompts, stem.with_suffix(".csv"), batch, judges)
    grades = list(tqdm(graded, desc=suite, total=len(prompts) * len(arms), unit="clip"))
    diversity: dict[str, dict[int, float]] = {}
    if suite == "scale-sweep":
        few = prompts[: -(-len(prompts) // DIVERSITY_SEEDS)]  # as many clips again
        found = diversity_of_arms(sampler, arms, few, stem.with_name(f"{stem.name}-diversity.csv"))
        for arm, index, value in tqdm(found, desc="diversity", total=len(few) * len(arms), unit="prompt"):
            diversity.setdefault(arm, {})[index] = value
    return [summarise(suite, arms, grades, judge, diversity) for judge in judges]


def _report(summary: dict[str, Any], stem: Path, arguments: argparse.Namespace) -> None:
    from nrg_sampler.evaluation.plots import plot
    from nrg_sampler.evaluation.report import markdown

    if summary["judge"] != "oracle":
        stem = stem.with_name(f"{stem.name}-{summary['judge']}")
    table = f"{_caption(summary, arguments)}\n\n{markdown(summary)}"
    stem.with_suffix(".json").write_text(json.dumps(summary, indent=2) + "\n")
    stem.with_suffix(".md").write_text(table + "\n")
    print(json.dumps(summary) if arguments.json else table, flush=True)
    try:
        plot(summary, stem.with_suffix(".png"))
    except ImportError as error:
        print(f"nrg-sampler: no plot: {error}", file=sys.stderr)


def _caption(summary: dict[str, Any], arguments: argparse.Namespace) -> str:
    steps = "the model's" if arguments.steps is None else arguments.steps
    return (
        f"{summary['suite']}: {summary['n']} prompts ({arguments.split}), {steps} steps, {arguments.dtype}, "
        f"graded by the {summary['judge']}. Win rates in percent against the unguided run at the same seed, ties half, "
        "with 95 % intervals; gains in standard deviations of the unguided grades; other columns over the unguided run."
    )


def _same_settings(file: Path, arguments: argparse.Namespace, guidance: Any) -> None:
    """Refuse to continue a CSV whose clips were sampled otherwise.

    Raises:
        ValueError: If the folder holds clips of other settings or another model, or cannot be written.
    """
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.files import writable_folder
    from nrg_sampler.manifest import model_fingerprint

    folders = {"pipeline": bundled_folder("pipeline"), "reward": arguments.reward or bundled_folder("reward")}
    models = {part: model_fingerprint(str(folder)) for part, folder in folders.items()}
    if arguments.clean_reward is not None:
        models["clean_reward"] = model_fingerprint(str(arguments.clean_reward))
    settings = {"guidance": guidance.to_dict(), "steps": arguments.steps, "dtype": arguments.dtype, **models}
    writable_folder(arguments.out)
    if file.exists() and json.loads(file.read_text()) != settings:
        raise ValueError(
            f"Expected clips sampled with {settings} in {arguments.out}, but {file.name} says otherwise; "
            "name another folder with --out."
        )
    file.write_text(json.dumps(settings, indent=2) + "\n")
