"""All suites in one Markdown document, with what is needed to make it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.evaluation.report import conclusion, effects_table, judge_name, wins_table

TITLES = {
    "weights": "Weights: each axis alone, mixtures, and with the sign flipped",
    "noise-aware": "Noise in training: a reward of noised latents, one of clean latents, and pixels through x0",
    "rivals": "Rivals: what else the same computation buys, and controls that must not help",
    "scale-sweep": "Scale: from weak to far too strong",
}
READING = (
    "Win rates are in percent against the unguided run of the same prompt and seed, a tie counting half. Gains are in "
    "standard deviations of the unguided grades; `mean` is that of the three axes. Brackets are 95 % bootstrap "
    "intervals over prompts. The target is the reward that guides: its gain is no evidence. The hacking index is the "
    "share of the target's gain that the judge does not confirm: 0 all confirmed, 1 nothing, above 1 a loss. Time, "
    "network (forward passes of the video model), motion, high frequency, saturation and diversity are over those of "
    "the unguided run; time is processor time on a CPU. Static clips move less than a tenth of the unguided median."
)


@dataclass(frozen=True)
class Section:
    """A suite in the document.

    Args:
        suite: Its name.
        summaries: Of ``summarise``, one for each judge.
        pictures: File names of its pictures.
        left_out: Why some arms are missing, if any are.
    """

    suite: str
    summaries: Sequence[Mapping[str, Any]]
    pictures: Sequence[str] = ()
    left_out: str | None = None


@dataclass(frozen=True)
class Document:
    """The whole report.

    Args:
        about: What it was made with, by name.
        sections: One for each suite.
        worst: File name of the contact sheet and how many pairs it shows.
    """

    about: Mapping[str, str]
    sections: Sequence[Section] = field(default_factory=tuple)
    worst: tuple[str, int] | None = None

    def markdown(self) -> str:
        """Lay it out."""
        parts = ["# Evaluation", "\n".join(f"- {name}: {value}" for name, value in self.about.items()), READING]
        for section in self.sections:
            parts += _section(section)
        if self.worst:
            name, count = self.worst
            parts += [
                "## The worst cases",
                f"The {count} prompts on which the default guidance loses most by the oracle, worst first: frames of "
                "the unguided clip, below them those of the guided one of the same seed, and the change on each axis.",
                f"![The {count} worst cases]({name})",
            ]
        return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {TITLES[section.suite]}"]
    if section.left_out:
        parts.append(section.left_out)
    for summary in section.summaries:
        parts += [f"By {judge_name(summary)}, {summary['n']} prompts:", wins_table(summary), conclusion(summary)]
    parts += ["Costs and side effects:", effects_table(section.summaries[0])]
    parts += [f"![{section.suite}]({picture})" for picture in section.pictures]
    return [part for part in parts if part]


def device_name(device: str) -> str:
    """Say what a torch device is, for a reader elsewhere."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8-sig").splitlines()
    except OSError:  # another system
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
