"""The models and the one worker that samples, a request at a time and in the order of asking."""

from __future__ import annotations

import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.lookahead import Looks
from nrg_sampler.rewards.gate import weights_for_prompt
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.device import default_device, weights_dtype
from nrg_sampler.runs.plan import Pace, Plan, measure, plan
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.runs.sampler import Sampler, load
from nrg_sampler.ui.presets import EXAMPLES
from nrg_sampler.ui.settings import Settings

TICK = 1.0  # seconds; how often a silent run is looked at, so that a closed page is noticed


@dataclass(frozen=True)
class Model:
    """A model that the server offers.

    Args:
        source: ``"shapes"``, a folder or a Hub id.
        reward: Names of rewards, a folder or Hub id, or ``None`` for the reward that comes with the pipeline.
    """

    source: str
    reward: str | None = None

    @property
    def name(self) -> str:
        """What the page calls it."""
        if self.source == BUNDLED:
            return f"{BUNDLED} (bundled)" if self.reward is None else f"{BUNDLED} with {self.reward}"
        return self.source


class Stopped(Exception):
    """The visitor cancelled the run or left."""


@dataclass(frozen=True)
class Waiting:
    """Others are first; ``place`` 1 is next."""

    place: int


@dataclass(frozen=True)
class Tick:
    """A second went by."""


@dataclass(frozen=True)
class Ended:
    """The run is over: all went well, or ``error`` says in one sentence why not; ``None`` for both if cancelled."""

    complete: bool
    error: str | None = None


class Run:
    """Work in the line, and what it reports.

    Args:
        work: Called with the run when its turn comes.
    """

    def __init__(self, work: Callable[[Run], None]) -> None:
        self.work = work
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.cancelled = threading.Event()

    def report(self, event: Any) -> None:
        """Hand an event to whoever follows the run."""
        self.events.put(event)

    def stop_if_cancelled(self) -> None:
        """Raise ``Stopped`` once the run is cancelled; called after every step."""
        if self.cancelled.is_set():
            raise Stopped


class Engine:
    """Offer models and work off the line.

    Args:
        models: What the page offers, the default first.
        device: A torch device; CUDA if there is one by default.
    """

    def __init__(self, models: tuple[Model, ...] = (Model(BUNDLED),), device: str | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.device = device or default_device()
        self._pipes: dict[str, Any] = {}
        self._paces: dict[tuple[str, str | None], Pace] = {}
        self._line: deque[Run] = deque()  # the first one is running
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="sampling", daemon=True).start()

    def recipe(self, settings: Settings) -> Recipe:
        """Return what is sampled for a request.

        Raises:
            ValueError: If the server does not offer its model.
        """
        if settings.model not in self.models:
            raise ValueError(f"Expected a model from {', '.join(self.models)}, but got {settings.model!r}.")
        model = self.models[settings.model]
        dtype = weights_dtype(model.source, self.device)
        return settings.recipe(model.source, model.reward, self.device, dtype)

    def sampler(self, settings: Settings, ahead: Ahead | None = None, looks: Looks | None = None) -> Sampler:
        """Return a sampler of a request, loading the model first if need be; only for work in the line.

        Args:
            settings: The request.
            ahead: Which look-ahead samples pull the clip, if any do.
            looks: These samples.

        Raises:
            ValueError: If the model does not load or does not fit the request.
        """
        recipe = replace(self.recipe(settings), lookahead=ahead)
        self.open(settings.model)
        return Sampler(recipe, self._pipes[settings.model], looks=looks, keep_latents=True)

    def loaded(self, name: str) -> Any:
        """Return a model's pipeline, or ``None`` if it is not loaded yet."""
        return self._pipes.get(name)

    def axes(self, name: str) -> tuple[str, ...]:
        """Return the axes of a loaded model's reward; those of the bundled one if it is not loaded."""
        reward = getattr(self.loaded(name), "reward_model", None)
        return tuple(reward.axes) if reward is not None else ("VQ", "MQ", "TA")

    def proposal(self, name: str, prompt: str) -> tuple[float, ...] | None:
        """Return the weights that a model's reward proposes for a prompt, or ``None`` while the model is not loaded.

        Raises:
            ValueError: If its reward has no gate.
        """
        pipe = self.loaded(name)
        return None if pipe is None else weights_for_prompt(pipe, prompt).values

    def open(self, name: str) -> None:
        """Load a model; only for work in the line. The bundled one is timed, so that the first plan has its seconds.

        Raises:
            ValueError: If the server does not offer the model or it does not load.
        """
        if name in self._pipes:
            return
        values = {"prompt": EXAMPLES[0], "weights": "1:1:1", "strength": 1.0, "steps": 2, "cfg": 4.0, "seed": 0}
        settings = Settings.read({**values, "model": name})
        self._pipes[name] = load(self.recipe(settings))
        settings = settings.with_weights(":".join("1" for _ in self.axes(name)))
        if self.models[name].source == BUNDLED:  # two steps of a large model are no trifle
            self.learn(settings, measure(self.sampler(settings)))

    def warm(self, name: str) -> None:
        """Open a model before anybody asks for it."""
        self._enqueue(Run(lambda run: self.open(name)))

    def learn(self, settings: Settings, pace: Pace) -> None:
        """Remember how fast a model ran."""
        self._paces[settings.model, settings.scheduler] = pace

    def pace(self, settings: Settings) -> Pace | None:
        """Return how fast a model ran last, or ``None`` if it has not yet."""
        own = self._paces.get((settings.model, None))
        return self._paces.get((settings.model, settings.scheduler), own)

    def plan(self, settings: Settings) -> Plan | None:
        """Return what a guided video would cost, or ``None`` while the model is not loaded."""
        pipe = self.loaded(settings.model)
        return None if pipe is None else plan(pipe, self.recipe(settings), self.pace(settings))

    def follow(self, run: Run) -> Iterator[Any]:
        """Put work in the line and yield what happens to it; closing the iterator cancels it.

        Yields:
            ``Waiting`` until its turn comes, then what it reports, ``Tick`` when a second passes without, and at last
            one ``Ended``.
        """
        self._enqueue(run)
        try:
            while True:
                try:
                    event = run.events.get(timeout=TICK)
                except queue.Empty:
                    event = Tick()
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            self.cancel(run)

    def cancel(self, run: Run) -> None:
        """Stop a run after the step it is in, or take it out of the line at once if it waits."""
        run.cancelled.set()
        with self._changed:
            if run in self._line and run is not self._line[0]:
                self._line.remove(run)
                self._tell_places()
                run.report(Ended(complete=False))

    def _enqueue(self, run: Run) -> None:
        with self._changed:
            self._line.append(run)
            self._tell_places()
            self._changed.notify()

    def _tell_places(self) -> None:
        for place, run in enumerate(self._line):
            if place:
                run.report(Waiting(place))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._line))
                run = self._line[0]
            ended = _carry_out(run)
            with self._changed:
                self._line.popleft()
                self._tell_places()
            run.report(ended)  # last, so that whoever sees the end finds the line moved on


def _carry_out(run: Run) -> Ended:
    try:
        run.stop_if_cancelled()
        run.work(run)
    except Stopped:
        return Ended(complete=False)
    except (ValueError, OSError, ImportError) as error:
        return Ended(complete=False, error=_sentence(error))
    except Exception as error:  # the server goes on, whatever a model does
        traceback.print_exc()
        if "out of memory" in str(error):
            return Ended(complete=False, error="The memory is used up; try fewer steps or a smaller model.")
        return Ended(complete=False, error=f"The run failed ({type(error).__name__}); the server's log says where.")
    return Ended(complete=True)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"The result could not be written: {error.strerror}. Nothing half-written is kept."
    return " ".join(str(error).split())
