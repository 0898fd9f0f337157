r"""Guide without any gradient: by a few cheap samples of the same prompt and what somebody says of them.

A few samples are taken in few steps and scored, by a judge that need not be differentiable or by a person. Then the
clip itself is sampled, pulled toward those that scored high and away from the others, by the closed form of
:class:`nrg_sampler.rewards.lookahead.LookaheadReward`::

    with lookahead(pipe, judge, samples=8, steps=8) as run:
        video = pipe("a red circle moving right").frames[0]
    print(run)

It adds to whatever else guides: the reward of an ``NRGFlowPipeline``, or that of an ``attach`` block. (The setting
``lookahead`` of ``RewardGuidance`` is something else: where a reward with a gradient is read.)

Reference:
    LiDAR, arXiv:2602.03211 (look-ahead sample reward guidance).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.guidance.fields import Number, Text, Whole, expect, setting, settings_of
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceTrace, GuidanceWarning
from nrg_sampler.hosts.attach import attached_beside
from nrg_sampler.hosts.finished import last_step
from nrg_sampler.hosts.prompts import PER_PROMPT
from nrg_sampler.hosts.rerouted import rerouted
from nrg_sampler.judges.finished import FinishedScorer
from nrg_sampler.rewards.lookahead import LookaheadReward, standardised
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike
from nrg_sampler.search import candidate_seeds

# Of a call that samples the clip itself, and not the few-step samples before it.
OF_THE_CLIP = (
    "latents",
    "sigmas",
    "timesteps",
    "return_dict",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)


@dataclass(frozen=True)
class Lookahead:
    """Say how many samples are taken beforehand and how strongly they pull.

    Args:
        samples: Samples of each prompt that are taken beforehand.
        steps: Denoising steps of each.
        scale: Strength of the pull, 1 is that of the formula, 4 what served on validation prompts; 0 samples as
            without it.
        sharpness: What their scores count, in standard deviations of the scores of one prompt; likewise.
        stop: Pull up to this fraction of the steps.
        max_push: Upper limit of the pull, in norms of the velocity; ``None`` for no limit.
        weights: One weight for each axis of whoever scores.
        seed: The samples begin with the noise of the further candidates of this seed.

    Raises:
        ValueError: If a setting is out of range.
    """

    samples: int = setting(8, Whole(2), "when", "samples of each prompt that are taken beforehand")
    steps: int = setting(8, Whole(), "when", "denoising steps of each")
    scale: float = setting(4.0, Number(), "strength", "strength of the pull; 0 is none")
    sharpness: float = setting(1.0, Number(), "strength", "what a standard deviation of the scores counts")
    stop: float = setting(1.0, Number(0, 1), "when", "pull up to this fraction of the steps")
    max_push: float | None = setting(
        1.0, Number(0, above=True, none="no limit"), "limits", "upper limit of the pull, in norms of the velocity"
    )
    weights: WeightsLike = setting(
        None,
        Text("W", "equal", lambda name, given: _weights(given)),
        "strength",
        "one weight for each axis of whoever scores",
    )
    seed: int = setting(0, Whole(0), "when", "the samples begin with the further candidates of this seed")

    def __post_init__(self) -> None:
        for name, stated in settings_of(type(self)).items():
            object.__setattr__(self, name, stated.checked(getattr(self, name)))

    @classmethod
    def sharp(cls, **overrides: Any) -> Lookahead:
        """Return settings for a clip that shall resemble the best samples rather than score higher.

        Scores count more than distances until late, as in the published code, so that the best sample pulls and the
        nearest one pushes.

        Args:
            **overrides: Further settings, which win.
        """
        sharp: dict[str, Any] = {"scale": 12.5, "sharpness": 1000.0, "stop": 0.5, "max_push": None}
        return cls(**{**sharp, **overrides})

    @property
    def acts(self) -> bool:
        """Whether it pulls at all."""
        return self.scale != 0 and self.sharpness != 0

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``Lookahead(**settings)`` reads them back."""
        weights = RewardWeights.parse(self.weights)
        return {**vars(self), "weights": None if weights.values is None else str(weights)}

    def cost(self, num_inference_steps: int) -> float:
        """Return the network evaluations it takes, in multiples of a single run of as many steps."""
        return 1 + self.samples * self.steps / num_inference_steps if self.acts else 1.0

    def guidance(self) -> RewardGuidance:
        """Return the settings of the pull as those of guidance by a reward."""
        limits: dict[str, Any] = {"stop": self.stop, "max_push": self.max_push, "calibrated": False}
        return RewardGuidance.preset("best", scale=self.scale, **limits)


def _weights(given: WeightsLike) -> RewardWeights:
    weights = RewardWeights.parse(given)
    expect(not weights.auto, "weights", "numbers, one for each axis of whoever scores", "'auto'")
    weights.require_some()
    return weights


@dataclass(frozen=True)
class Looks:
    """Finished samples of some prompts, and what somebody says of them.

    Args:
        latents: Clean latents, shape ``(prompts, n, C, T, H, W)``.
        scores: Higher is better, shape ``(prompts, n)``; for the picks of a person 1 for more like this, -1 for less
            like this and 0 for the others.
    """

    latents: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        standardised(self.scores)  # refuses scores that are not finite

    @property
    def even(self) -> bool:
        """Whether all samples of each prompt score the same, so that they pull nowhere."""
        return not bool(standardised(self.scores).any())

    def picked(self, picks: Sequence[float]) -> Looks:
        """Return the samples of a single prompt with other scores, one for each.

        Raises:
            ValueError: If their number differs.
        """
        scores = torch.tensor([list(picks)], dtype=torch.float32)
        if scores.shape != self.scores.shape:
            raise ValueError(
                f"Expected a pick for each of the samples, {tuple(self.scores.shape)}, but got {len(picks)}; 0 says "
                "nothing of a sample."
            )
        return replace(self, scores=scores)

    def reward(self, settings: Lookahead) -> LookaheadReward:
        """Return the reward whose gradient is the pull."""
        scores = standardised(self.scores).to(self.latents.device)
        return LookaheadReward(self.latents, scores, settings.sharpness)


@dataclass
class LookaheadRun:
    """What happened in a ``lookahead`` block.

    Args:
        settings: The settings.
        looks: The samples of the last call and their scores; ``None`` before the first.
        trace: What they did in each step of it; ``None`` likewise, and where they pull nowhere.
        cost: Network evaluations of it, in multiples of a run without.
    """

    settings: Lookahead
    looks: Looks | None = None
    trace: GuidanceTrace | None = None
    cost: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return what happened as plain JSON values: the scores, the cost and the pull of each step."""
        rows = [] if self.trace is None else self.trace.rows()
        steps = [{name: row.get(name) for name in ("step_index", "sigma", "push_ratio", "skipped")} for row in rows]
        scores = [] if self.looks is None else self.looks.scores.tolist()
        return {"scores": scores, "cost": self.cost, "steps": steps}

    def __str__(self) -> str:
        if self.looks is None:
            return (
                "No look-ahead: nothing was sampled." if self.settings.acts else "No look-ahead: it has no strength."
            )
        prompts, count = self.looks.scores.shape
        low, high = self.looks.scores.min().item(), self.looks.scores.max().item()
        of = "" if prompts == 1 else f" of each of {prompts} prompts"
        head = f"{count} look-ahead samples{of}, scored {low:.3g} to {high:.3g}; K about {self.cost:.2f}."
        return f"{head}\n{self.trace or 'All scored the same, so that they pull nowhere.'}"


def sample_looks(
    pipe: Any,
    prompt: str | Sequence[str],
    settings: Lookahead | None = None,
    judge: Any = None,
    *,
    reward: Any = None,
    seeds: Sequence[Sequence[int]] | None = None,
    **arguments: Any,
) -> Looks:
    """Take the samples and let somebody score them, for several runs with the same or for the picks of a person.

    Args:
        pipe: As of ``lookahead``.
        prompt: One prompt or several.
        settings: How many samples, of how many steps.
        judge: As of ``lookahead``.
        reward: Likewise.
        seeds: One for each sample of each prompt; by default all begin with the further candidates of the seed.
        **arguments: Passed to the pipeline.

    Raises:
        ValueError: As ``lookahead``.
    """
    settings = settings or Lookahead()
    taker = _Taker(pipe, settings, FinishedScorer(pipe, judge, reward, settings.weights), seeds)
    return taker.take(pipe, {"prompt": prompt, **arguments})


@contextmanager
def lookahead(
    pipe: Any,
    judge: Any = None,
    settings: Lookahead | None = None,
    *,
    reward: Any = None,
    looks: Looks | None = None,
    prompts: str | Sequence[str] | None = None,
    seeds: Sequence[Sequence[int]] | None = None,
    **overrides: Any,
) -> Iterator[LookaheadRun]:
    """Take few-step samples before each call of ``pipe`` in the ``with`` block, and let their scores pull the clip.

    Args:
        pipe: A diffusers pipeline that samples a rectified flow, as of ``attach``.
        judge: Scores finished clips; needs no gradient. A judge by its name, or a callable that maps frames
            ``(B, 3, T, H, W)`` in [0, 1], and ``prompts`` and ``fps`` if its parameters have these names, to scores
            ``(B,)`` or ``(B, axes)``.
        settings: The settings.
        reward: Scores finished latents in place of a judge; the pipeline's own by default.
        looks: Samples that were scored before; then none are taken.
        prompts: The text of the prompts, for a judge that reads it, where the pipeline is called with features alone.
        seeds: One for each sample of each prompt of every call.
        **overrides: Single settings that replace those of ``settings``.

    Yields:
        What happened, call after call. With ``scale=0`` or ``sharpness=0`` nothing is touched.

    Raises:
        ValueError: If nobody scores, the pipeline cannot be called in few steps, or in a call a score is not finite.

    Warns:
        GuidanceWarning: If all samples of a call scored the same.

    Reference:
        LiDAR, arXiv:2602.03211.
    """
    run = LookaheadRun(replace(settings or Lookahead(), **overrides))
    if not run.settings.acts:
        yield run
        return
    taker = None
    if looks is None:
        taker = _Taker(pipe, run.settings, FinishedScorer(pipe, judge, reward, run.settings.weights, prompts), seeds)

    def call(sample: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        run.trace, run.looks = None, taker.take(sample, arguments) if taker else looks
        assert run.looks is not None
        if run.looks.even:
            why = "All look-ahead samples scored the same, so that they pull nowhere."
            warnings.warn(why, GuidanceWarning, stacklevel=4)
            result = sample(**arguments)
        else:
            with attached_beside(pipe, run.looks.reward(run.settings), run.settings.guidance()) as run.trace:
                result = sample(**arguments)
        run.cost = run.settings.cost(max(1, len(pipe.scheduler.timesteps))) if taker else 1.0
        return result

    with rerouted(pipe, call):
        yield run


class _Taker:
    """Take the samples of a call, one of each prompt at a time, in the memory of a single run."""

    def __init__(
        self, pipe: Any, settings: Lookahead, scorer: FinishedScorer, seeds: Sequence[Sequence[int]] | None = None
    ) -> None:
        self._pipe, self._settings, self._scorer, self._seeds = pipe, settings, scorer, seeds
        if any(len(row) != settings.samples for row in seeds or ()):
            raise ValueError(
                f"Expected {settings.samples} seeds for each prompt, but got {[len(row) for row in seeds or ()]}; "
                "give every sample its own."
            )

    @torch.no_grad()
    def take(self, sample: Callable[..., Any], arguments: Mapping[str, Any]) -> Looks:
        """Take them and let them be scored.

        Args:
            sample: Calls the pipeline.
            arguments: What it is called with.
        """
        taken = [self._one(sample, arguments, number) for number in range(self._settings.samples)]
        latents, scores = (torch.stack(parts, dim=1) for parts in zip(*taken, strict=True))
        return Looks(latents, scores.float())

    def _one(self, sample: Callable[..., Any], arguments: Mapping[str, Any], number: int) -> tuple[Tensor, Tensor]:
        taken = inspect.signature(type(self._pipe).__call__).parameters
        if missing := [name for name in ("num_inference_steps", "generator") if name not in taken]:
            raise ValueError(
                f"Expected a pipeline that is called with {' and '.join(missing)}, but {type(self._pipe).__name__} is "
                "not; pass samples that were scored before as `looks`."
            )
        few = {name: value for name, value in arguments.items() if name not in OF_THE_CLIP}
        few |= {name: 1 for name in PER_PROMPT if name in taken}
        few |= {"num_inference_steps": self._settings.steps, "generator": self._generator(number)}
        few["output_type"] = "latent" if self._scorer.reads_latents else "pt"
        with last_step(self._pipe) as last:
            output = sample(**few)
        finished = last.read()
        return finished.latents, self._scorer(output, finished, few).to(finished.latents.device)

    def _generator(self, number: int) -> Any:
        if self._seeds is not None:
            return [torch.Generator().manual_seed(row[number]) for row in self._seeds]
        further = candidate_seeds(self._settings.seed, number + 2)[-1]
        return torch.Generator().manual_seed(further)
