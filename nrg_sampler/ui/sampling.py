"""What the worker does: sample clips one after the other and report every step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from nrg_sampler.lookahead import Looks
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.manifest import Clip, Manifest
from nrg_sampler.runs.plan import Pace, plan
from nrg_sampler.runs.sampler import Sampler
from nrg_sampler.ui.engine import Engine, Run
from nrg_sampler.ui.preview import Preview
from nrg_sampler.ui.settings import Settings
from nrg_sampler.video import Frames

Arm = Literal["unguided", "guided"]


@dataclass(frozen=True)
class Part:
    """One clip to sample.

    Args:
        settings: What was asked for.
        arm: Whether the reward guides.
        ahead: Which look-ahead samples pull it, if any do.
        looks: These samples.
    """

    settings: Settings
    arm: Arm = "guided"
    ahead: Ahead | None = None
    looks: Looks | None = None


@dataclass(frozen=True)
class Progress:
    """A step is done.

    Args:
        part: Number of the clip, from 0.
        parts: How many there are.
        arm: What it is.
        step: Steps done.
        steps: Steps of the clip.
        seconds_left: Of all clips; ``None`` while unknown.
        picture: Of x0_hat, shape ``(H, W, 3)``; ``None`` in most steps.
    """

    part: int
    parts: int
    arm: Arm
    step: int
    steps: int
    seconds_left: float | None
    picture: Frames | None = None


@dataclass(frozen=True)
class Sampled:
    """A clip is done.

    Args:
        part: Number of the clip, from 0.
        settings: What was asked for.
        frames: Shape ``(T, H, W, 3)``.
        clip: What is known about it.
        sampler: What sampled it.
    """

    part: int
    settings: Settings
    frames: Frames = field(repr=False)
    clip: Clip
    sampler: Sampler

    def manifest(self, command: str, before: Sequence[Clip] = ()) -> Manifest:
        """Return the manifest of this clip, and of those ``before`` it in the same file."""
        return self.sampler.manifest(command, self.settings.seed, [*before, self.clip])


def sample_parts(engine: Engine, parts: Sequence[Part], run: Run) -> Iterator[Sampled]:
    """Sample one part after the other and report ``Progress``; all settings are checked before the first step.

    Yields:
        Each clip when it is finished.

    Raises:
        Stopped: One step after the run was cancelled, at the latest.
        ValueError: If the model, the reward or a prompt does not fit.
    """
    samplers = [engine.sampler(part.settings, part.ahead, part.looks) for part in parts]
    clock = _Clock(engine, parts, samplers)
    for index, (part, sampler) in enumerate(zip(parts, samplers, strict=True)):
        steps = int({**sampler.pipe.sampling_defaults, **sampler.recipe.sampling}["num_inference_steps"])
        preview = Preview(sampler.pipe, steps)
        watch = _Watch(run, preview, clock, Progress(index, len(parts), part.arm, 0, steps, None))
        frames, clip = sampler.sample(part.settings.seed, part.arm == "guided", watch.step)
        run.stop_if_cancelled()
        if len(watch.moments) > 1 and part.arm == "guided":
            gradients = part.settings.guidance.gradients(steps)
            engine.learn(part.settings, Pace.of(clip, watch.moments, gradients, engine.device))
        yield Sampled(index, part.settings, frames, clip, sampler)


class _Watch:
    """Look after the steps of one clip."""

    def __init__(self, run: Run, preview: Preview, clock: _Clock, start: Progress) -> None:
        self.moments: list[float] = []
        self._run, self._preview, self._clock, self._start = run, preview, clock, start

    def step(self, step: int, latents: Tensor) -> None:
        """Report a step, or stop the run."""
        self.moments.append(time.perf_counter())
        self._run.stop_if_cancelled()
        left = self._clock.left(self._start.part, step + 1)
        picture = self._preview.picture(step, latents)
        self._run.report(replace(self._start, step=step + 1, seconds_left=left, picture=picture))


class _Clock:
    """Say how long it will take, by the plan at first and by what was seen later."""

    def __init__(self, engine: Engine, parts: Sequence[Part], samplers: Sequence[Sampler]) -> None:
        self._started = time.perf_counter()
        self._expected: list[float] = []
        self._steps = [part.settings.steps for part in parts]
        for part, sampler in zip(parts, samplers, strict=True):
            cost = plan(sampler.pipe, sampler.recipe, engine.pace(part.settings))
            seconds = cost.seconds if part.arm == "guided" else cost.unguided_seconds
            self._expected.append(seconds or 0.0)

    def left(self, part: int, step: int) -> float | None:
        """Return the seconds left after ``step`` steps of ``part``."""
        done = sum(self._expected[:part]) + self._expected[part] * step / self._steps[part]
        if not done:
            return None
        elapsed = time.perf_counter() - self._started
        return (sum(self._expected) - done) * elapsed / done
