"""Run an evaluation: sample and grade every arm of its suites, and write tables, plots and the report."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrg_sampler.evaluation.arms import UNGUIDED, Arm
from nrg_sampler.evaluation.document import Document, Section, device_name
from nrg_sampler.evaluation.grading import (
    DIVERSITY_SEEDS,
    ORACLE,
    Graded,
    diversity_of_arms,
    grade_arms,
    write_grades,
)
from nrg_sampler.evaluation.models import common_settings, load_arm_sampler, model_fingerprints
from nrg_sampler.evaluation.panel import default_judges, panel
from nrg_sampler.evaluation.plots import plot
from nrg_sampler.evaluation.report import MEAN, captioned, summarise
from nrg_sampler.evaluation.settings import SEARCHING, EvaluationSettings
from nrg_sampler.evaluation.table import require_same_settings
from nrg_sampler.evaluation.worst import contact_sheet, sample_cases, worst_indices
from nrg_sampler.files import replacing, writable_folder
from nrg_sampler.json_text import to_json
from nrg_sampler.locks import FolderLock
from nrg_sampler.runs.device import AUTO, dtype_reason
from nrg_sampler.runs.manifest import versions
from nrg_sampler.runs.progress import Progress, Run
from nrg_sampler.video import write_png

SWEEP = "scale-sweep"  # the suite that measures diversity
DIVERSITY_SHARE = 16  # one prompt in so many is sampled with several seeds
MISSING = {
    "clean": "a reward trained on clean latents, made by `python -m nrg_sampler.shapes.train clean-reward` and named "
    "with --clean-reward FOLDER",
    "pixel": "the pixel judge, made by `python -m nrg_sampler.shapes.train judge` and named with "
    "--judges oracle,pixel:FOLDER",
}


OnSection = Callable[[Section], None]


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation measured.

    Args:
        folder: Where its files are.
        sections: One for each suite, with a summary for each judge, see ``nrg_sampler.evaluation.report.summarise``.
    """

    folder: Path
    sections: tuple[Section, ...]

    def row(self, arm: str, axis: str = MEAN, suite: str | None = None, judge: str = ORACLE) -> Mapping[str, Any]:
        """Return the row of a table, with ``win``, ``low`` and ``high`` in percent, ``gain`` and ``k``.

        Args:
            arm: Name of the arm.
            axis: An axis, or ``"mean"``.
            suite: Which table; the first by default.
            judge: Who graded.

        Raises:
            ValueError: If there is no such row.
        """
        suite = suite or self.sections[0].suite
        summaries = [one for section in self.sections if section.suite == suite for one in section.summaries]
        rows: list[Mapping[str, Any]] = [
            row for summary in summaries if summary["judge"] == judge for row in summary["rows"]
        ]
        found = [row for row in rows if (row["arm"], row["axis"]) == (arm, axis)]
        if not found:
            arms = ", ".join(dict.fromkeys(repr(row["arm"]) for row in rows))
            raise ValueError(f"Expected an arm of {suite} graded by {judge} ({arms or 'none'}), but got {arm!r}.")
        return found[0]


def evaluate(
    settings: EvaluationSettings, command: str | None = None, on_section: OnSection | None = None
) -> Run[EvaluationResult]:
    """Sample the arms of some suites at the same prompts and seeds, let judges grade the clips, and write tables.

    With several suites ``report.md`` is written in the end. A second evaluation with the same settings and folder goes
    on where the first was stopped.

    Args:
        settings: What is compared.
        command: How it was started, for the report.
        on_section: Called with the summaries of each suite when its files are written.

    Returns:
        The run, an iterator over its progress with the result at the end.

    Raises:
        ValueError: If a model does not load, or the folder holds clips of other settings, cannot be written, or
            another evaluation is at work there.
    """
    return Run(Evaluation(settings, command).steps(on_section))


class Evaluation:
    """An evaluation whose models are loaded and whose folder is open; :func:`evaluate` runs one.

    Args:
        settings: What is compared.
        command: How it was started, for the report.

    Raises:
        ValueError: If a model does not load, or the folder holds clips of other settings, cannot be written, or
            another evaluation is at work there.
    """

    def __init__(self, settings: EvaluationSettings, command: str | None = None) -> None:
        self.settings, self._command = settings, command
        names, alone = default_judges() if settings.judges is None else (list(settings.judges), None)
        self._judges = panel(names)
        self._out = writable_folder(Path(settings.out))
        self._lock = FolderLock(self._out)
        fingerprints = model_fingerprints(settings)
        self._sampler = load_arm_sampler(settings, fingerprints, self._judges)
        self._clips = self._out / f"clips-{settings.split}.csv"
        common = common_settings(settings, fingerprints, names)
        require_same_settings(self._clips.with_suffix(".settings.json"), common, self._clips)
        self._prompts = settings.chosen_prompts()
        self._arms = {suite: settings.arms_of(suite) for suite in settings.suites}
        self._sampler.check([arm for arms in self._arms.values() for arm in arms])
        self._left_out = {suite: self._missing(arms) for suite, arms in self._arms.items()}
        self._draws = importlib.util.find_spec("matplotlib") is not None
        chosen = [dtype_reason(settings.device)] if settings.dtype == AUTO else []
        self.notes = (*chosen, *([alone] if alone else []), *self._notes())  # what a user should know beforehand

    def steps(self, on_section: OnSection | None = None) -> Generator[Progress, None, EvaluationResult]:
        """Sample and grade, suite by suite; see :func:`evaluate`."""
        with self._lock:
            return (yield from self._suites(on_section))

    def _suites(self, on_section: OnSection | None) -> Generator[Progress, None, EvaluationResult]:
        yield Progress("loading", 1, 1, "model", notes=self.notes)
        sections, grades = [], dict[str, list[Graded]]()
        for suite in self.settings.suites:
            grades[suite] = yield from self._grade(suite)
            diversity = (yield from self._diversify(suite)) if suite == SWEEP else {}
            sections.append(self._section(suite, grades[suite], diversity))
            if on_section is not None:
                on_section(sections[-1])
        if len(sections) > 1:
            self._write_report(sections, grades)
        return EvaluationResult(self._out, tuple(sections))

    def _grade(self, suite: str) -> Generator[Progress, None, list[Graded]]:
        arms, grades = self._possible(suite), list[Graded]()
        total, batch = len(self._prompts) * len(arms), self.settings.batch
        for clip in grade_arms(self._sampler, arms, self._prompts, self._clips, batch, self._judges):
            grades.append(clip)
            yield Progress(suite, len(grades), total, "clip")
        write_grades(self._file(suite, "csv"), grades)
        return grades

    def _diversify(self, suite: str) -> Generator[Progress, None, dict[str, dict[int, float]]]:
        arms, diversity = self._possible(suite), dict[str, dict[int, float]]()
        few = self._prompts[: -(-len(self._prompts) // DIVERSITY_SHARE)]
        file = self._out / f"diversity-{self.settings.split}.csv"
        measured = diversity_of_arms(self._sampler, arms, few, file, DIVERSITY_SEEDS)
        for done, (arm, index, value) in enumerate(measured, start=1):
            diversity.setdefault(arm, {})[index] = value
            yield Progress("diversity", done, len(few) * len(arms), "prompt")
        return diversity

    def _section(self, suite: str, grades: Sequence[Graded], diversity: dict[str, dict[int, float]]) -> Section:
        """Summarise a suite by each judge, and write its files."""
        arms, about = self._possible(suite), self.settings.about()
        summaries = [{**summarise(suite, arms, grades, judge, diversity), **about} for judge in self._judges]
        pictures = []
        for summary in summaries:
            for kind, text in (("json", to_json(summary, indent=2)), ("md", captioned(summary))):
                with replacing(self._file(suite, kind, summary["judge"])) as partial:
                    partial.write_text(text + "\n", encoding="utf-8")
            if self._draws:
                pictures.append(self._file(suite, "png", summary["judge"]))
                plot(summary, pictures[-1])
        return Section(suite, summaries, [picture.name for picture in pictures], self._why_left_out(suite))

    def _write_report(self, sections: Sequence[Section], grades: Mapping[str, Sequence[Graded]]) -> None:
        """Write ``report.md``, and the contact sheet of the worst cases if the default guidance was compared."""
        worst = None
        if SEARCHING in grades:
            default = Arm("guided", self.settings.guidance)
            indices = worst_indices(grades[SEARCHING], default.name, UNGUIDED)
            batch = self.settings.batch
            cases = sample_cases(self._sampler, default, Arm(UNGUIDED), self._prompts, indices, batch)
            picture = self._out / f"worst-{self.settings.split}.png"
            write_png(contact_sheet(cases), picture)
            worst = (picture.name, len(cases))
        with replacing(self._out / "report.md") as partial:
            partial.write_text(Document(self._about(), sections, worst).markdown(), encoding="utf-8", errors="replace")

    def _possible(self, suite: str) -> list[Arm]:
        return [arm for arm in self._arms[suite] if arm.name not in self._left_out[suite]]

    def _missing(self, arms: Sequence[Arm]) -> dict[str, str]:
        """What arms need and is not there, a key of :data:`MISSING`, by the names of the arms."""
        needed = {arm.name: self._absent(arm) for arm in arms}
        return {name: what for name, what in needed.items() if what}

    def _absent(self, arm: Arm) -> str | None:
        if not self._sampler.can(arm):
            return arm.reward
        return None if arm.judge in (None, ORACLE, *self._judges) else arm.judge

    def _why_left_out(self, suite: str) -> str | None:
        missing = self._left_out[suite]
        needed = "; ".join(MISSING[what] for what in dict.fromkeys(missing.values()))
        return f"Left out {', '.join(map(repr, missing))}, which need {needed}." if missing else None

    def _notes(self) -> Iterator[str]:
        for suite in self.settings.suites:
            if why := self._why_left_out(suite):
                yield f"{suite}: {why}"
        if not self._draws:
            yield 'no plots, for matplotlib is not installed: pip install "nrg-sampler[plot]".'

    def _file(self, suite: str, kind: str, judge: str = ORACLE) -> Path:
        name = "-".join([suite, self.settings.split, *([] if judge == ORACLE else [judge])])
        return self._out / f"{name}.{kind}"

    def _about(self) -> dict[str, str]:
        """What the report was made with."""
        settings = self.settings
        return {
            **({"command": f"`{self._command}`"} if self._command else {}),
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "device": device_name(settings.device),
            "prompts": f"{settings.n} of the {settings.split} split, one seed each",
            "sampling": f"{settings.steps or 'the model’s'} steps, {settings.arithmetic}",
            "default guidance": ", ".join(f"{name} {value}" for name, value in settings.guidance.to_dict().items()),
            "judges": ", ".join(self._judges),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        }
