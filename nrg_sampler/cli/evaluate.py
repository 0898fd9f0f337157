"""``nrg-sampler evaluate``: the tables of the README, made again."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli import parser as options
from nrg_sampler.cli.parser import whole_number

if TYPE_CHECKING:
    from nrg_sampler.evaluation.arm_sampler import ArmSampler
    from nrg_sampler.evaluation.arms import Arm
    from nrg_sampler.evaluation.document import Section
    from nrg_sampler.evaluation.grading import Graded

HELP = "Compare ways to sample on held-out prompts of the shapes world, graded by judges that do not guide."
EXAMPLE = "evaluate --suite weights --n 100 --out evaluation"
SUITES = ("weights", "noise-aware", "rivals", "scale-sweep")
EQUAL = "1:1:1"
DTYPES = ("float32", "bfloat16")
DIVERSITY_SHARE = 16  # one prompt in so many is sampled with several seeds
MISSING = {
    "clean": "a reward trained on clean latents, made by `python -m nrg_sampler.shapes.train clean-reward` and named with "
    "--clean-reward FOLDER",
    "pixel": "the pixel judge, made by `python -m nrg_sampler.shapes.train judge` and named with "
    "--judges oracle,pixel:FOLDER",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite", default="weights", choices=(*SUITES, "all"), help="which table to make; all also writes report.md"
    )
    parser.add_argument("--n", type=int, default=100, help="held-out prompts, one seed each (default: 100)")
    parser.add_argument(
        "--split", default="test", choices=("validation", "test"), help="prompts: tune on validation only"
    )
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
    parser.add_argument("--reward", metavar="FOLDER", help="the reward that guides (default: the bundled one)")
    parser.add_argument("--clean-reward", type=Path, metavar="FOLDER", help="a reward trained on clean latents")
    parser.add_argument("--steps", type=whole_number(1), help="denoising steps (default: the model's)")
    parser.add_argument("--batch", type=whole_number(1), default=20, help="clips sampled together (default: 20)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the arithmetic (default: float32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder for CSV, JSON, tables and plots (resumable)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a suite and judge, not the table")
    options.add_guidance(parser)


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.cli.recipe import guidance_from
    from nrg_sampler.evaluation.panel import panel
    from nrg_sampler.rewards.weights import RewardWeights
    from nrg_sampler.runs.device import require_device
    from nrg_sampler.shapes.scenes import prompts

    chosen = prompts(arguments.split)
    if not 1 <= arguments.n <= len(chosen):
        raise ValueError(
            f"Expected --n between 1 and {len(chosen)}, the prompts of that split, but got {arguments.n}."
        )
    require_device(arguments.device)
    guidance = guidance_from(arguments)
    if arguments.weights is None:
        guidance = replace(guidance, weights=EQUAL)
    if guidance.weights == RewardWeights(auto=True) and arguments.suite in ("rivals", "all"):
        raise ValueError(
            f"Expected --weights as numbers for the suite {arguments.suite}, whose searches choose by them, but got "
            "'auto'; name another suite, or weights such as 1:1:1."
        )
    arms_of = {suite: _arms(suite, guidance, arguments) for suite in _suites(arguments)}
    names = _judge_names(arguments.judges)
    evaluation = Evaluation(arguments, guidance, chosen[: arguments.n], names, panel(names))
    sections = [evaluation.section(suite, arms) for suite, arms in arms_of.items()]
    if arguments.suite == "all":
        evaluation.write_document(sections)
    return 0


def _suites(arguments: argparse.Namespace) -> Sequence[str]:
    if arguments.suite != "all":
        return (arguments.suite,)
    if arguments.arms:
        raise ValueError("Expected --arms with one suite, but got it with --suite all; name the suite.")
    return SUITES


def _arms(suite: str, guidance: Any, arguments: argparse.Namespace) -> list[Arm]:
    from nrg_sampler.evaluation import arms as suites

    every = suites.SUITES[suite](guidance)
    return suites.wanted_arms(every, arguments.arms, guidance) if arguments.arms else every


def _judge_names(wanted: str | None) -> list[str]:
    """The judges asked for, or the oracle and the bundled pixel judge; says so if the latter is not there."""
    from nrg_sampler.judges.base import load_pixel_judge

    if wanted is not None:
        return wanted.split(",")
    try:
        load_pixel_judge()
    except ValueError as error:
        print(f"nrg-sampler: graded by the oracle alone: {error}", file=sys.stderr)
        return ["oracle"]
    return ["oracle", "pixel"]


class Evaluation:
    """One run of the command: what all suites share, and what is written for each.

    Args:
        arguments: The options.
        guidance: The default guidance of the arms.
        prompts: What is sampled.
        names: The judges as they are asked for.
        judges: Who grades.

    Raises:
        ValueError: If a model does not load, or the folder holds clips of other settings or cannot be written.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        guidance: Any,
        prompts: Sequence[Any],
        names: Sequence[str],
        judges: dict[str, Any],
    ) -> None:
        from nrg_sampler.evaluation.arm_sampler import ArmSampler
        from nrg_sampler.files import writable_folder

        self.arguments, self.guidance, self.prompts, self.judges = arguments, guidance, prompts, judges
        pipe, rewards = _models(arguments)
        fingerprints = _fingerprints(arguments)
        self.out = writable_folder(arguments.out)
        self.clips = self.out / f"clips-{arguments.split}.csv"
        _same_settings(self.clips.with_suffix(".settings.json"), _settings(arguments, fingerprints, names))
        sampling = {} if arguments.steps is None else {"num_inference_steps": arguments.steps}
        self.sampler: ArmSampler = ArmSampler(pipe, rewards, _dtype(arguments.dtype), sampling, fingerprints)
        self.grades: dict[str, list[Graded]] = {}

    def section(self, suite: str, every: Sequence[Arm]) -> Section:
        """Sample and grade a suite, write its files and print its tables."""
        from nrg_sampler.evaluation.document import Section

        arms, left_out = self._possible(suite, every)
        summaries = self._grade(suite, arms)
        pictures = [self._report(summary) for summary in summaries]
        return Section(suite, summaries, [name for name in pictures if name], left_out)

    def write_document(self, sections: Sequence[Section]) -> None:
        """Write ``report.md`` and the contact sheet of the worst cases."""
        from nrg_sampler.evaluation.arms import UNGUIDED, Arm
        from nrg_sampler.evaluation.document import Document
        from nrg_sampler.evaluation.worst import contact_sheet, sample_cases, worst_indices
        from nrg_sampler.files import replacing
        from nrg_sampler.video import write_png

        default = Arm("guided", self.guidance)
        worst = worst_indices(self.grades["rivals"], default.name, UNGUIDED)
        cases = sample_cases(self.sampler, default, Arm(UNGUIDED), self.prompts, worst, self.arguments.batch)
        picture = self.out / f"worst-{self.arguments.split}.png"
        write_png(contact_sheet(cases), picture)
        document = Document(self._about(), sections, (picture.name, len(cases)))
        with replacing(self.out / "report.md") as partial:
            partial.write_text(document.markdown(), encoding="utf-8")
        print(f"nrg-sampler: wrote {self.out / 'report.md'}", file=sys.stderr)

    def _possible(self, suite: str, arms: Sequence[Arm]) -> tuple[list[Arm], str | None]:
        """Leave out what cannot be sampled here, and say so."""
        absent = {arm.name: self._absent(arm) for arm in arms}
        missing = {name: what for name, what in absent.items() if what}
        if not missing:
            return list(arms), None
        needed = "; ".join(MISSING[what] for what in dict.fromkeys(missing.values()))
        left_out = f"Left out {', '.join(map(repr, missing))}, which need {needed}."
        print(f"nrg-sampler: {suite}: {left_out}", file=sys.stderr)
        return [arm for arm in arms if arm.name not in missing], left_out

    def _absent(self, arm: Arm) -> str | None:
        """What an arm needs and is not there: a key of :data:`MISSING`."""
        if not self.sampler.can(arm):
            return arm.reward
        return None if arm.judge in (None, "oracle", *self.judges) else arm.judge

    def _grade(self, suite: str, arms: Sequence[Arm]) -> list[dict[str, Any]]:
        from tqdm.auto import tqdm

        from nrg_sampler.evaluation.grading import DIVERSITY_SEEDS, diversity_of_arms, grade_arms, write_grades
        from nrg_sampler.evaluation.report import summarise

        graded = grade_arms(self.sampler, arms, self.prompts, self.clips, self.arguments.batch, self.judges)
        grades = list(tqdm(graded, desc=suite, total=len(self.prompts) * len(arms), unit="clip"))
        self.grades[suite] = grades
        write_grades(self._file(suite, "csv"), grades)
        diversity: dict[str, dict[int, float]] = {}
        if suite == "scale-sweep":
            few = self.prompts[: -(-len(self.prompts) // DIVERSITY_SHARE)]
            file = self.out / f"diversity-{self.arguments.split}.csv"
            found = diversity_of_arms(self.sampler, arms, few, file, DIVERSITY_SEEDS)
            for arm, index, value in tqdm(found, desc="diversity", total=len(few) * len(arms), unit="prompt"):
                diversity.setdefault(arm, {})[index] = value
        settings = {name: getattr(self.arguments, name) for name in ("split", "steps", "dtype", "device")}
        settings["guidance"] = self.guidance.to_dict()
        return [{**summarise(suite, arms, grades, judge, diversity), **settings} for judge in self.judges]

    def _file(self, suite: str, kind: str, judge: str = "oracle") -> Path:
        name = "-".join([suite, self.arguments.split, *([] if judge == "oracle" else [judge])])
        return self.out / f"{name}.{kind}"

    def _report(self, summary: dict[str, Any]) -> str | None:
        """Write and print a summary; returns the name of its picture, if matplotlib could draw one."""
        from nrg_sampler.evaluation.plots import plot
        from nrg_sampler.evaluation.report import markdown
        from nrg_sampler.files import replacing

        table = f"{_caption(summary)}\n\n{markdown(summary)}"
        for kind, text in (("json", json.dumps(summary, indent=2)), ("md", table)):
            with replacing(self._file(summary["suite"], kind, summary["judge"])) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        print(json.dumps(summary) if self.arguments.json else table, flush=True)
        picture = self._file(summary["suite"], "png", summary["judge"])
        try:
            plot(summary, picture)
        except ImportError as error:
            print(f"nrg-sampler: no plot: {error}", file=sys.stderr)
            return None
        return picture.name

    def _about(self) -> dict[str, str]:
        """What the document was made with."""
        from nrg_sampler.evaluation.document import device_name
        from nrg_sampler.runs.manifest import versions

        arguments = self.arguments
        return {
            "command": f"`{shlex.join(['nrg-sampler', *sys.argv[1:]])}`",
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "device": device_name(arguments.device),
            "prompts": f"{arguments.n} of the {arguments.split} split, one seed each",
            "sampling": f"{arguments.steps or 'the model’s'} steps, {arguments.dtype}",
            "default guidance": ", ".join(f"{name} {value}" for name, value in self.guidance.to_dict().items()),
            "judges": ", ".join(self.judges),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }


def _models(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The bundled pipeline, and the rewards besides its own that arms name."""
    from nrg_sampler.evaluation.controls import RandomDirection, pixel_control, trusted_as
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline
    from nrg_sampler.judges.base import load_pixel_judge
    from nrg_sampler.rewards.loading import load_reward
    from nrg_sampler.runs.sampler import quiet_unless_watched

    quiet_unless_watched()
    reward = arguments.reward or BUNDLED
    pipe: Any = NRGFlowPipeline.from_pretrained(BUNDLED, reward_model=reward).to(arguments.device)
    pipe.set_progress_bar_config(disable=True)
    rewards: dict[str, Any] = {"random": RandomDirection(pipe.reward_model)}
    if arguments.clean_reward is not None:
        clean = load_reward(arguments.clean_reward).to(arguments.device)
        rewards["clean"] = trusted_as(clean, pipe.reward_model)
    with contextlib.suppress(ValueError):  # where no pixel judge is installed, its arm is left out
        judged = pixel_control(load_pixel_judge(_pixel_folder(arguments)), pipe).to(arguments.device)
        rewards["pixel"] = trusted_as(judged, pipe.reward_model)
    return pipe, rewards


def _pixel_folder(arguments: argparse.Namespace) -> str | None:
    """The folder that ``--judges`` names for the pixel judge; ``None`` for the bundled one."""
    judges = (arguments.judges or "").split(",")
    return next((judge.partition(":")[2] for judge in judges if judge.startswith("pixel:")), None)


def _fingerprints(arguments: argparse.Namespace) -> dict[str, str]:
    """Tell models of one name apart, by what they do here; those that are not there are left out."""
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.runs.manifest import model_fingerprint

    folders = {
        "pipeline": bundled_folder("pipeline"),
        "target": arguments.reward or bundled_folder("reward"),
        "clean": arguments.clean_reward,
    }
    with contextlib.suppress(ValueError):
        folders["pixel"] = _pixel_folder(arguments) or bundled_folder("judge")
    found = {name: model_fingerprint(str(folder)) for name, folder in folders.items() if folder is not None}
    return {name: value for name, value in found.items() if value is not None}


def _dtype(name: str) -> Any:
    import torch

    return None if name == "float32" else getattr(torch, name)


def _caption(summary: dict[str, Any]) -> str:
    from nrg_sampler.evaluation.report import judge_name

    steps = "the model's" if summary["steps"] is None else summary["steps"]
    return (
        f"{summary['suite']}: {summary['n']} prompts ({summary['split']}), {steps} steps, {summary['dtype']}, "
        f"graded by {judge_name(summary)}. Win rates in percent against the unguided run at the same seed, ties half, "
        "with 95 % intervals; gains in standard deviations of the unguided grades; other columns over the unguided run."
    )


def _settings(arguments: argparse.Namespace, fingerprints: dict[str, str], judges: Sequence[str]) -> dict[str, Any]:
    """What all clips of a folder have in common; what differs from arm to arm is in ``ArmSampler.source``."""
    from nrg_sampler.judges.base import judge_identity

    return {
        **{name: getattr(arguments, name) for name in ("split", "steps", "dtype")},
        "device": arguments.device.partition(":")[0],
        "pipeline": fingerprints.get("pipeline"),
        "reward": fingerprints.get("target"),
        **{f"{name.partition(':')[0]} judge": judge_identity(name) for name in judges},
    }


def _same_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuse to continue a CSV whose clips were sampled or graded otherwise.

    Raises:
        ValueError: If they were.
    """
    from nrg_sampler.files import replacing

    before = json.loads(file.read_text()) if file.exists() else {}
    differing = [name for name, value in settings.items() if name in before and before[name] != value]
    if differing:
        raise ValueError(
            f"Expected clips sampled with {', '.join(f'{name} {before[name]}' for name in differing)}, as those in "
            f"{file.parent}, but got {', '.join(f'{name} {settings[name]}' for name in differing)}; "
            "name another folder with --out."
        )
    with replacing(file) as partial:
        partial.write_text(json.dumps({**before, **settings}, indent=2) + "\n")
