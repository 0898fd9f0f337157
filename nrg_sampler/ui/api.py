"""The endpoints for programs, without Gradio: each runs to its end and returns files and their manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nrg_sampler.ui.engine import Ended, Run
from nrg_sampler.ui.handlers import Studio
from nrg_sampler.ui.jobs import Written, lattice, sample_pair, sample_singles
from nrg_sampler.ui.sampling import Part
from nrg_sampler.ui.settings import Settings
from nrg_sampler.ui.visits import Result

Entries = dict[str, Any]


def generate(studio: Studio, name: str, values: Mapping[str, Any]) -> tuple[Path, Entries]:
    """Sample a guided video; return the file and its manifest.

    Raises:
        ValueError: If the request is refused, or the run failed or was cancelled.
    """
    folder = studio.visits.get(name).new_folder()

    def work(settings: Settings) -> Callable[[Run], None]:
        return lambda run: sample_singles(studio.engine, folder, [Part(settings)], run)

    (clip,) = _clips(_finish(studio, name, values, work))
    return clip


def compare(studio: Studio, name: str, values: Mapping[str, Any]) -> tuple[Path, Path, Path, Entries]:
    """Sample a seed without and with the reward; return unguided, guided, both side by side, and the manifest.

    Raises:
        ValueError: As ``generate``.
    """
    visit = studio.visits.get(name)

    def work(settings: Settings) -> Callable[[Run], None]:
        return lambda run: sample_pair(studio.engine, visit, settings, run)

    (folder,) = (event.folder for event in _finish(studio, name, values, work) if isinstance(event, Result))
    unguided, guided, both = (folder / f"{name}.mp4" for name in ("unguided", "guided", "compare"))
    return unguided, guided, both, _manifest(both)


def sweep(studio: Studio, name: str, values: Mapping[str, Any], fineness: int) -> list[tuple[Path, Entries]]:
    """Sample a seed with weights from all over the triangle; return each file with its manifest.

    Raises:
        ValueError: As ``generate``.
    """
    folder = studio.visits.get(name).new_folder()

    def work(settings: Settings) -> Callable[[Run], None]:
        weights = lattice(len(studio.engine.axes(settings.model)), fineness)
        parts = [Part(settings.with_weights(text)) for text in weights]
        return lambda run: sample_singles(studio.engine, folder, parts, run)

    return _clips(_finish(studio, name, values, work))


def _finish(
    studio: Studio, name: str, values: Mapping[str, Any], work: Callable[[Settings], Callable[[Run], None]]
) -> list[Any]:
    events = list(studio.carry_out(studio.visits.get(name), values, work))
    if isinstance(events[-1], Ended) and not events[-1].complete:
        raise ValueError(events[-1].error or "The run was cancelled.")
    return events


def _clips(events: list[Any]) -> list[tuple[Path, Entries]]:
    return [(event.video, _manifest(event.video)) for event in events if isinstance(event, Written)]


def _manifest(video: Path) -> Entries:
    entries: Entries = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
    return entries
