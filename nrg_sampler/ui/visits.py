"""What belongs to one visit: its folder of outputs, its results and its runs."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.ui.engine import Engine, Run
from nrg_sampler.ui.settings import Settings

KEPT_RESULTS = 40  # in a visit; older ones are deleted
IDLE_LIMIT = 2 * 3600.0  # seconds after which a visit without a request is forgotten


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        settings: What was asked for.
        folder: Its files, and no others.
        manifest: Of the pair.
    """

    settings: Settings
    folder: Path
    manifest: Manifest


@dataclass
class Candidates:
    """Clips of one prompt that a visitor can mark, to have more like them or less.

    Args:
        ahead: What pulled them, if anything did.
        settings: Of each, by its seed.
        latents: Finished, likewise.
        marks: 1 for more, -1 for less, of those that are marked.
    """

    ahead: Ahead | None = None
    settings: dict[int, Settings] = field(default_factory=dict)
    latents: dict[int, Tensor] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)

    def add(self, settings: Settings, latents: Tensor | None) -> None:
        """Add a clip that is finished."""
        self.settings[settings.seed] = settings
        if latents is not None:
            self.latents[settings.seed] = latents


@dataclass
class Visit:
    """One open page, or one program.

    Args:
        folder: Its outputs; the name cannot be guessed, for whoever knows it can read them.
        results: Pairs, the latest last.
        runs: What runs or waits.
        seen: When it last asked for something.
        picks: Settings of the clips that can be clicked, by where they are.
        candidates: Those of the last best of n.
        latest: Folder of the latest result of each kind of which only one is kept.
    """

    folder: Path
    results: list[Result] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)
    picks: dict[str, list[Settings]] = field(default_factory=dict)
    candidates: Candidates = field(default_factory=Candidates)
    latest: dict[str, Path] = field(default_factory=dict)

    def new_folder(self, kind: str | None = None) -> Path:
        """Make a folder for one result; with a ``kind`` it takes the place of the last one of that kind.

        Raises:
            OSError: If the disk is full or the visit is over.
        """
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        if kind is not None:
            shutil.rmtree(self.latest.get(kind, folder / "none"), ignore_errors=True)
            self.latest[kind] = folder
        return folder

    def keep(self, result: Result) -> None:
        """Add a result and forget the oldest one if there are too many."""
        self.results.append(result)
        while len(self.results) > KEPT_RESULTS:
            shutil.rmtree(self.results.pop(0).folder, ignore_errors=True)


class Visits:
    """All open visits, by the name that the server has for each.

    Args:
        root: Folder for all outputs; only what is below it is ever served.
        engine: Whose runs are cancelled when a visit ends.
        idle_limit: Seconds after which a visit without a request is forgotten.
    """

    def __init__(self, root: Path, engine: Engine, idle_limit: float = IDLE_LIMIT) -> None:
        self.root = root
        self._engine = engine
        self._idle_limit = idle_limit
        self._open: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Visit:
        """Return the visit of that name, beginning it if need be, and forget those that are long idle."""
        with self._lock:
            self._forget_idle()
            if name not in self._open:
                folder = self.root / secrets.token_urlsafe(24)
                folder.mkdir(parents=True, mode=0o700)
                self._open[name] = Visit(folder)
            visit = self._open[name]
            visit.seen = time.monotonic()
            return visit

    def end(self, name: str) -> None:
        """Cancel what runs and delete what was written."""
        with self._lock:
            self._end(name)

    def cancel(self, name: str) -> None:
        """Cancel what runs or waits."""
        with self._lock:
            visit = self._open.get(name)
        for run in list(visit.runs) if visit else []:
            self._engine.cancel(run)

    def __len__(self) -> int:
        return len(self._open)

    def _forget_idle(self) -> None:
        oldest = time.monotonic() - self._idle_limit
        for name in [name for name, visit in self._open.items() if visit.seen < oldest and not visit.runs]:
            self._end(name)

    def _end(self, name: str) -> None:
        visit = self._open.pop(name, None)
        if visit is None:
            return
        for run in list(visit.runs):
            self._engine.cancel(run)
        shutil.rmtree(visit.folder, ignore_errors=True)
