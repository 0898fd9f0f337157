"""What the page does, without Gradio: plain methods and generators that say which parts of the page change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from nrg_sampler.runs.manifest import Clip
from nrg_sampler.ui import fragments, results
from nrg_sampler.ui.curves import curves
from nrg_sampler.ui.engine import Ended, Engine, Run, Waiting
from nrg_sampler.ui.jobs import Written, consecutive_seeds, lattice, ranked, sample_pair, sample_singles, score
from nrg_sampler.ui.marks import marked_parts
from nrg_sampler.ui.sampling import Part, Progress
from nrg_sampler.ui.settings import Settings
from nrg_sampler.ui.visits import Candidates, Result, Visit, Visits

UNGUIDED_HINT = "The same seed without the reward"
GUIDED_HINT = "With the reward"
DIFFERENCE_HINT = f"Where they differ, {results.DIFFERENCE_GAIN} times as bright"


@dataclass(frozen=True)
class View:
    """What to show; ``None`` leaves a part as it is. All but the last three are HTML."""

    status: str | None = None
    unguided: str | None = None
    guided: str | None = None
    difference: str | None = None
    verdict: str | None = None
    curves: str | None = None
    files: str | None = None
    sweep: str | None = None
    best: str | None = None
    history: str | None = None
    snippet: str | None = None
    busy: bool | None = None
    values: dict[str, Any] | None = None


PARTS = tuple(item.name for item in fields(View))


def blank() -> View:
    """Return the page before the first run."""
    return View(
        status=fragments.status("Ready"),
        unguided=fragments.player("Unguided", hint=UNGUIDED_HINT),
        guided=fragments.player("Guided", hint=GUIDED_HINT),
        difference=fragments.player("Difference", hint=DIFFERENCE_HINT),
        verdict=fragments.verdict(None),
        curves=curves([]),
        files=fragments.downloads({}),
        sweep=fragments.rows([]),
        best=fragments.gallery([], "Each candidate starts from the next seed. Click one to take its seed."),
        history=fragments.gallery([], "Every result of this visit will be here. Click one to bring it back."),
        snippet="",
        busy=False,
    )


class Studio:
    """Serve visits with the models of an engine.

    Every generator yields ``View`` and never raises for what a visitor did: an error is a sentence in the status line.

    Args:
        engine: Samples.
        visits: Keeps what belongs to whom.
    """

    def __init__(self, engine: Engine, visits: Visits) -> None:
        self.engine = engine
        self.visits = visits

    def proposal(self, model: str, prompt: str) -> tuple[View, tuple[float, ...] | None]:
        """Return the weights that the reward proposes for a prompt, to start from, or a status that says why not."""
        try:
            found = self.engine.proposal(model, prompt)
        except ValueError as error:
            return View(status=fragments.status(str(error), kind="error")), None
        if found is None:
            return View(status=fragments.status("The model is still loading; choose Auto again in a moment.")), None
        return View(), found

    def compare(self, name: str, values: Mapping[str, Any]) -> Iterator[View]:
        """Sample a seed without and with the reward, each shown when it is finished."""
        visit = self.visits.get(name)
        start = blank()
        yield View(
            status=fragments.status("Starting", kind="busy"),
            unguided=start.unguided,
            guided=start.guided,
            difference=start.difference,
            verdict=start.verdict,
            curves=start.curves,
            files=start.files,
            snippet="",
            busy=True,
        )

        def work(settings: Settings) -> Callable[[Run], None]:
            return lambda run: sample_pair(self.engine, visit, settings, run)

        unfinished = {"unguided", "guided"}
        for event in self.carry_out(visit, values, work):
            if isinstance(event, Written):
                unfinished.discard("unguided")
                yield View(unguided=fragments.player("Unguided", event.video))
            elif isinstance(event, Result):
                yield replace(self._show(visit, event), values=None)  # the visitor may have moved on
            elif isinstance(event, Ended) and event.complete:
                yield View(busy=False)
            elif isinstance(event, Ended):
                players: dict[str, Any] = {
                    arm: fragments.player(arm.capitalize(), hint="Not finished") for arm in unfinished
                }
                yield replace(_common(event), **players)
            elif isinstance(event, Progress) and event.picture is not None:
                shown: dict[str, Any] = {event.arm: fragments.player(event.arm.capitalize(), picture=event.picture)}
                yield replace(_common(event), **shown)
            else:
                yield _common(event)

    def sweep(self, name: str, values: Mapping[str, Any], fineness: int) -> Iterator[View]:
        """Sample one seed with weights from all over the triangle of the axes."""
        visit = self.visits.get(name)
        yield View(status=fragments.status("Starting", kind="busy"), busy=True)
        weights: list[str] = []
        written: list[Written] = []

        def work(settings: Settings) -> Callable[[Run], None]:
            weights.extend(lattice(len(self.engine.axes(settings.model)), fineness))
            parts = [Part(settings.with_weights(text)) for text in weights]
            return lambda run: sample_singles(self.engine, visit.new_folder("sweep"), parts, run)

        drawn = -1  # how many clips the triangle shows; drawing it again would start them again
        for event in self.carry_out(visit, values, work):
            if isinstance(event, Written):
                written.append(event)
                visit.picks["sweep"] = [item.sampled.settings for item in written]
            news = bool(weights) and len(written) > drawn
            drawn = len(written) if news else drawn
            yield replace(_common(event), sweep=_triangle(weights, written) if news else None)

    def best_of(self, name: str, values: Mapping[str, Any], candidates: float) -> Iterator[View]:
        """Sample candidates from consecutive seeds and rank them by the guiding reward's score."""
        visit = self.visits.get(name)
        yield View(status=fragments.status("Starting", kind="busy"), busy=True)

        def work(settings: Settings) -> Callable[[Run], None]:
            parts = consecutive_seeds(settings, candidates)
            return lambda run: sample_singles(self.engine, visit.new_folder("best"), parts, run)

        yield from self._ranked(visit, values, work, Candidates())

    def again(self, name: str, candidates: float, pull: float) -> Iterator[View]:
        """Sample the next candidates, pulled by what the visitor marked among those on the page."""
        visit = self.visits.get(name)
        yield View(status=fragments.status("Starting", kind="busy"), busy=True)
        try:
            parts = marked_parts(visit.candidates, candidates, pull)
        except ValueError as error:
            yield _common(Ended(complete=False, error=str(error)))
            return

        def work(settings: Settings) -> Callable[[Run], None]:
            return lambda run: sample_singles(self.engine, visit.new_folder("best"), parts, run)

        yield from self._ranked(visit, parts[0].settings.values(), work, Candidates(parts[0].ahead))

    def mark(self, name: str, index: int | None, mark: int) -> View:
        """Take down that the visitor wants more like a candidate (1), less (-1), or says nothing of it (0)."""
        visit = self.visits.get(name)
        picks = visit.picks.get("best", [])
        if index is None or not 0 <= index < len(picks) or mark not in (-1, 0, 1):
            return View(status=fragments.status("That clip is no longer there.", kind="error"))
        seed, wanted = picks[index].seed, {1: "More like", -1: "Less like", 0: "No mark on"}[mark]
        visit.candidates.marks[seed] = mark
        return View(status=fragments.status(f"{wanted} seed {seed}; press Sample again"))

    def _ranked(
        self,
        visit: Visit,
        values: Mapping[str, Any],
        work: Callable[[Settings], Callable[[Run], None]],
        shown: Candidates,
    ) -> Iterator[View]:
        """Carry out work and show its clips, the best first; they take the place of those that could be marked."""
        written: list[Written] = []
        for event in self.carry_out(visit, values, work):
            if not isinstance(event, Written):
                yield _common(event)
                continue
            visit.candidates = shown
            shown.add(event.sampled.settings, event.sampled.sampler.finished)
            written = ranked([*written, event])
            visit.picks["best"] = [item.sampled.settings for item in written]
            cards = [_candidate(place, item, shown.marks) for place, item in enumerate(written)]
            yield View(best=fragments.gallery(cards))

    def pick(self, name: str, kind: str, index: int | None) -> View:
        """Take the settings of a clip of the ``"sweep"`` or of the ``"best"`` candidates."""
        picks = self.visits.get(name).picks.get(kind, [])
        if index is None or not 0 <= index < len(picks):
            return View(status=fragments.status("That clip is no longer there.", kind="error"))
        settings = picks[index]
        taken = f"weights {settings.values()['weights']}" if kind == "sweep" else f"seed {settings.seed}"
        return View(status=fragments.status(f"Took {taken}"), values=settings.values())

    def restore(self, name: str, index: int | None) -> View:
        """Show an earlier result of this visit with its settings; ``index`` 0 is the latest."""
        visit = self.visits.get(name)
        if index is None or not 0 <= index < len(visit.results):
            return View(status=fragments.status("That result is no longer there.", kind="error"))
        return self._show(visit, visit.results[-1 - index], picked=index)

    def cancel(self, name: str) -> None:
        """Stop what runs for this visit within a step, or take it out of the line."""
        self.visits.cancel(name)

    def leave(self, name: str) -> None:
        """End a visit: its runs are cancelled, its files deleted."""
        self.visits.end(name)

    def open_model(self, name: str, model: str) -> Iterator[tuple[View, tuple[str, ...] | None]]:
        """Load a model and yield, at last, the axes of its reward with the view."""
        visit = self.visits.get(name)
        if self.engine.loaded(model) is not None:  # nobody waits in line for what is there
            yield View(status=fragments.status("Ready")), self.engine.axes(model)
            return
        yield View(status=fragments.status("Loading the model", kind="busy")), None
        run = Run(lambda run: self.engine.open(model))
        visit.runs.append(run)
        try:
            for event in self.engine.follow(run):
                if not isinstance(event, Ended):
                    yield _common(event), None
                elif event.complete:
                    yield View(status=fragments.status("Ready")), self.engine.axes(model)
                else:
                    yield _common(event), None
        finally:
            visit.runs.remove(run)

    def plan(self, values: Mapping[str, Any], clips: int = 2) -> str:
        """Return what a run of these settings would cost, or what is wrong with them, as HTML."""
        try:
            settings = Settings.read(values)
            self.engine.recipe(settings)
            return fragments.plan_line(self.engine.plan(settings), clips)
        except ValueError as error:
            return fragments.message(str(error))

    def carry_out(
        self, visit: Visit, values: Mapping[str, Any], work: Callable[[Settings], Callable[[Run], None]]
    ) -> Iterator[Any]:
        """Check the request, put its work in the line and yield the events, ``Ended`` as the last."""
        try:
            settings = Settings.read(values)
            self.engine.recipe(settings)
            run = Run(work(settings))
        except ValueError as error:
            yield Ended(complete=False, error=str(error))
            return
        visit.runs.append(run)
        try:
            yield from self.engine.follow(run)
        finally:
            visit.runs.remove(run)

    def _show(self, visit: Visit, result: Result, picked: int = 0) -> View:
        manifest, folder = result.manifest, result.folder
        return View(
            status=fragments.status(f"Done in {sum(clip.seconds for clip in manifest.clips):.0f} s", share=1.0),
            unguided=fragments.player("Unguided", folder / "unguided.mp4"),
            guided=fragments.player("Guided", folder / "guided.mp4"),
            difference=fragments.player("Difference", folder / "difference.mp4"),
            verdict=fragments.verdict(manifest),
            curves=curves(manifest.clips[-1].trace),
            files=fragments.downloads(
                {
                    "Both, mp4": folder / "compare.mp4",
                    "Guided, mp4": folder / "guided.mp4",
                    "Unguided, mp4": folder / "unguided.mp4",
                    "Manifest, JSON": folder / "compare.json",
                }
            ),
            snippet=results.snippet(manifest),
            history=_history(visit.results, picked),
            values=result.settings.values(),
        )


def _common(event: Any) -> View:
    """Return the status line of an event that every kind of run has."""
    if isinstance(event, Waiting):
        first = "you are next" if event.place == 1 else f"{event.place} are before you"
        return View(status=fragments.status(f"Waiting in line: {first}", kind="busy"))
    if isinstance(event, Progress):
        return View(status=_progress(event))
    if isinstance(event, Ended):
        if event.error is not None:
            return View(status=fragments.status(event.error, kind="error"), busy=False)
        done = fragments.status("Done", share=1.0) if event.complete else fragments.status("Cancelled")
        return View(status=done, busy=False)
    return View()


def _progress(event: Progress) -> str:
    which = f"{event.arm.capitalize()}" if event.parts == 2 else f"Clip {event.part + 1} of {event.parts}"
    left = "" if event.seconds_left is None else f" · {fragments.duration(event.seconds_left)} left"
    share = (event.part + event.step / event.steps) / event.parts
    return fragments.status(f"{which} · step {event.step} of {event.steps}{left}", share, kind="busy")


def _triangle(weights: Sequence[str], written: Sequence[Written]) -> str:
    """Put the clips where their weights are: rows with the same weight of the first axis."""
    lines: dict[str, list[str]] = {}
    for index, text in enumerate(weights):
        clip = fragments.empty_card(text)
        if index < len(written):
            clip = fragments.card(index, written[index].video, text, _reading(written[index].sampled.clip))
        first = text.split(":")[0] if text.count(":") > 1 else ""
        lines.setdefault(first, []).append(clip)
    return fragments.rows(list(lines.values()))


def _candidate(place: int, item: Written, marks: Mapping[int, int]) -> str:
    settings = item.sampled.settings
    title = f"{place + 1}. seed {settings.seed}"
    card = fragments.card(place, item.video, title, f"score {score(item.sampled.clip, settings):+.2f}")
    return fragments.markable(card, place, marks.get(settings.seed, 0))


def _reading(clip: Clip) -> str:
    readings = clip.scores.get("oracle") or clip.scores.get("reward") or {}
    return " ".join(f"{value:.2f}" for value in readings.values())


def _history(shown: Sequence[Result], picked: int) -> str:
    cards = []
    for index, result in enumerate(reversed(shown)):
        values = result.settings.values()
        note = f"{values['weights']} · strength {values['strength']:g} · seed {values['seed']}"
        video = result.folder / "guided.mp4"
        cards.append(fragments.card(index, video, result.settings.prompt, note, picked=index == picked))
    return fragments.gallery(cards)
