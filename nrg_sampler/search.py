"""Choose among samples instead of changing them: best-of-n, latent resampling and particles.

All sample several candidates of a prompt and return the best, and all compose with guidance. They cost a multiple of a
run that is known beforehand (:meth:`Search.cost`); guidance at the same price is what to compare them with.

References:
    [1] LatSearch, arXiv:2603.14526 (resampling partly denoised latents by their reward).
    [2] Singhal et al., 2025, arXiv:2501.06848 (Feynman-Kac steering: particles of a stochastic sampler).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler.flow import stochastic_step
from nrg_sampler.guidance.fields import Number, Whole, expect
from nrg_sampler.hosts.prompts import frame_rate
from nrg_sampler.hosts.sampling import sample_clips
from nrg_sampler.rewards.base import Conditioning, Reward, RewardHooks
from nrg_sampler.rewards.gradient import weighted_score
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike
from nrg_sampler.schedulers import thin_history

if TYPE_CHECKING:
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline

ClipScore = Callable[[Tensor, Sequence[str]], Tensor]

# Pipelines whose loop holds nothing else of the batch, so that it can shrink on the way.
THINNABLE = ("WanPipeline", "WanVideoToVideoPipeline")
OTHER_CANDIDATE = 1_000_000  # between the seeds of the candidates of one seed
MEMORYLESS = ("FlowMatchEulerDiscreteScheduler",)


@dataclass(frozen=True)
class Search:
    """Say how many candidates are sampled and when some of them are given up.

    Args:
        candidates: Samples begun for each prompt.
        moments: Fractions of the denoising steps, in (0, 1), after which as many candidates are drawn with replacement
            in proportion to ``exp(score / temperature)``. Solvers are deterministic, so one drawn twice goes on once.
            Without any, all candidates are finished: best-of-n.
        noise: Share of the posterior's noise that every step adds, in [0, 1], see ``flow.stochastic_step``. Above 0
            the candidates are particles: one drawn twice goes on as two, which fresh noise parts again, so that all
            are finished; they are drawn by how much their score has risen since the last draw. Needs Euler steps.
        temperature: Of that draw, in standard deviations of the reward, above 0.
        weights: One weight per axis of the reward in the score.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        [1]; the defaults are its schedule, steps 10, 15 and 20 of 50 with 6 candidates. Particles: [2], the difference
        potential; the noise-aware reward reads the noisy latents themselves, so that nothing has to be predicted.
    """

    candidates: int = 6
    moments: tuple[float, ...] = (0.2, 0.3, 0.4)
    temperature: float = 1.0
    weights: WeightsLike = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        Whole(1).checked("candidates", self.candidates)
        moments: Any = self.moments  # whatever a file holds
        expect(isinstance(moments, list | tuple), "moments", "a sequence of numbers", repr(moments))
        inside = all(isinstance(moment, int | float) and 0 < moment < 1 for moment in moments)
        expect(inside, "moments", "between 0 and 1", moments)
        Number(0, above=True).checked("temperature", self.temperature)
        Number(0, 1).checked("noise", self.noise)
        weights = RewardWeights.parse(self.weights)
        weights.require_some()
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "moments", tuple(moments))

    @classmethod
    def best_of(cls, n: int, weights: WeightsLike = None) -> Search:
        """Return the search that finishes ``n`` candidates and keeps the best."""
        return cls(candidates=n, moments=(), weights=weights)

    @classmethod
    def particles(cls, n: int = 4, weights: WeightsLike = None) -> Search:
        """Return Feynman-Kac steering with ``n`` particles, drawn anew four times on the way.

        Reference:
            [2], with four particles.
        """
        return cls(candidates=n, moments=(0.2, 0.4, 0.6, 0.8), weights=weights, noise=1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``Search(**settings)`` reads them back."""
        weights = RewardWeights.parse(self.weights)
        return {
            **vars(self),
            "moments": list(self.moments),
            "weights": str(weights) if weights.auto else None if weights.values is None else list(weights.values),
        }

    def cost(self) -> tuple[float, float]:
        """Return the least and the most network evaluations it can take, in multiples of a single run.

        The least if each draw leaves a single candidate, the most if none is ever given up, as of particles.
        """
        if self.noise:
            return float(self.candidates), float(self.candidates)
        first = min(self.moments, default=1.0)
        return self.candidates * first + 1 - first, float(self.candidates)

    def steps(self, num_inference_steps: int) -> set[int]:
        """Return after how many denoising steps candidates are drawn."""
        return {max(1, round(moment * num_inference_steps)) for moment in self.moments}


def candidate_seeds(seed: int, candidates: int) -> list[int]:
    """Return the seed of each candidate; the first is ``seed`` itself, so that a search contains the plain run."""
    return [seed + OTHER_CANDIDATE * index for index in range(candidates)]


def systematic(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw as many rows as there are, with replacement, in proportion to ``exp(log_weights)``, with little chance.

    A row of weight w among n comes floor(n w) or ceil(n w) times.

    Args:
        log_weights: Shape ``(n,)``, on the CPU.
        generator: Of the one random number.

    Returns:
        Row numbers in rising order, shape ``(n,)``.

    Reference:
        Kitagawa, 1996, Monte Carlo filter and smoother, appendix (stratified and systematic resampling).
    """
    edges = log_weights.double().softmax(dim=0).cumsum(dim=0)
    pointers = (torch.arange(len(edges)) + torch.rand((), generator=generator, dtype=torch.float64)) / len(edges)
    return torch.searchsorted(edges, pointers).clamp(max=len(edges) - 1)


class Found(NamedTuple):
    """The best candidate of each of ``B`` prompts.

    Args:
        frames: As the pipeline returns them.
        latents: Final latents, shape ``(B, C, T, H, W)``.
        prompt_embeds: Text features, shape ``(B, L, D)``.
        seeds: Seed of the noise that each began with.
        scores: What it was chosen by, shape ``(B,)``.
    """

    frames: Any
    latents: Tensor
    prompt_embeds: Tensor
    seeds: list[int]
    scores: Tensor


def search(
    pipe: NRGFlowPipeline,
    prompt: str | Sequence[str],
    settings: Search | None = None,
    seeds: Sequence[Sequence[int]] | None = None,
    **arguments: Any,
) -> Found:
    """Sample candidates, give some up on the way and return the best of each prompt; only that one is decoded.

    Args:
        pipe: A pipeline with a reward, which reads the noisy latents.
        prompt: One prompt or several; the candidates of all are sampled together.
        settings: The search.
        seeds: One seed a candidate for each prompt; those of seed 0 by default.
        **arguments: Passed to the pipeline, ``reward_scale`` and ``reward_guidance`` among them.

    Raises:
        ValueError: If there is no reward, seeds do not fit or the pipeline cannot give up candidates on the way.

    Reference:
        [1], Algorithm 1.
    """
    settings = settings or Search()
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    thinning = _Thinning(pipe, settings, _seeds(seeds, len(prompts), settings.candidates), prompts)
    clips = sample_clips(pipe, _repeated(prompts, settings.candidates), thinning.seeds, thinning, **arguments)
    return Found(*clips, thinning.kept, thinning.scores)


def best_of_n(
    pipe: NRGFlowPipeline,
    prompt: str | Sequence[str],
    n: int = 4,
    judge: ClipScore | None = None,
    seeds: Sequence[Sequence[int]] | None = None,
    weights: WeightsLike = None,
    **arguments: Any,
) -> Found:
    """Sample ``n`` candidates to the end and return the best of each prompt.

    Args:
        pipe: A pipeline; it needs a reward only if there is no ``judge``.
        prompt: One prompt or several.
        n: Candidates of each.
        judge: Scores finished clips ``(B, 3, T, H, W)`` in [0, 1] with their prompts, shape ``(B,)``. By default the
            pipeline's reward scores the finished latents, and only the best are decoded.
        seeds: One seed a candidate for each prompt; from 0 on by default.
        weights: One weight per axis of the reward, without a ``judge``.
        **arguments: Passed to the pipeline.

    Raises:
        ValueError: If there is neither reward nor judge, or seeds do not fit.
    """
    if judge is None:
        return search(pipe, prompt, Search.best_of(n, weights), seeds, **arguments)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    chosen_seeds = _seeds(seeds, len(prompts), n)
    texts = _repeated(prompts, n)
    clips = sample_clips(pipe, texts, chosen_seeds, **{**arguments, "output_type": "pt"})
    scores = judge(clips.frames.transpose(1, 2), texts).view(-1, n)
    best = scores.argmax(dim=1) + n * torch.arange(len(prompts), device=scores.device)
    kept = best.to(clips.frames.device)
    seed_of = [chosen_seeds[row] for row in best.tolist()]
    frames, latents, embeds = (part[kept] for part in clips)
    return Found(frames, latents, embeds, seed_of, scores.amax(dim=1))


def _repeated(prompts: Sequence[str], candidates: int) -> list[str]:
    return [text for text in prompts for _ in range(candidates)]


class _Thinning:
    """Read the latents after each moment, draw who goes on, and in the end keep the best of each prompt."""

    def __init__(self, pipe: Any, settings: Search, seeds: list[int], prompts: list[str]) -> None:
        self._reward = _reward(pipe)
        _check_thinning(pipe, settings)
        self._settings, self.seeds = settings, seeds
        self._weights = RewardWeights.parse(settings.weights)
        self._weights.resolve(self._reward.axes)
        self.kept, self._prompts = seeds, prompts
        self._owners = torch.arange(len(seeds)) // settings.candidates  # which prompt a row belongs to
        self._generator = torch.Generator().manual_seed(seeds[0])
        self._before: Tensor | None = None  # the latents before the step
        self._velocity: Tensor | None = None  # of the step
        self.scores = torch.zeros(len(seeds))  # that the candidates were drawn by last

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        done, total = step + 1, len(pipe.scheduler.timesteps)
        self._follow(tensors["latents"], pipe.scheduler)
        if self._settings.noise:
            tensors = {**tensors, "latents": self._stirred(tensors["latents"])}
        changed = tensors
        if done in self._settings.steps(total) or done == total:
            changed = self._thinned(pipe, tensors, last=done == total)
        self._before = changed["latents"]
        return changed if self._settings.noise or changed is not tensors else {}

    def _thinned(self, pipe: Any, tensors: dict[str, Any], last: bool) -> dict[str, Any]:
        scores = self._scores(pipe, tensors, pipe.scheduler.sigmas[pipe.scheduler.step_index])
        rows = self._best(scores) if last else self._drawn(scores)
        self.scores = scores[rows]
        self.kept = [self.kept[row] for row in rows.tolist()]
        batch, self._owners = len(self._owners), self._owners[rows]
        thin_history(pipe.scheduler, rows, batch)
        pipe.direction_memory.keep(rows)
        return {name: tensor[rows.to(tensor.device)] for name, tensor in tensors.items() if tensor is not None}

    def _stirred(self, latents: Tensor) -> Tensor:
        """Turn the Euler step that was taken into a stochastic one; the first, from pure noise, stays."""
        if self._before is None or self._velocity is None:
            return latents
        before, (sigma, following) = self._before.float(), self._levels
        fresh = torch.randn(latents.shape, generator=self._generator).to(before)
        return stochastic_step(before, self._velocity, sigma, following, fresh, self._settings.noise).to(latents.dtype)

    def _follow(self, latents: Tensor, scheduler: Any) -> None:
        """Note the velocity of the step that was taken, for rewards that want it; it is unknown after the first."""
        if self._before is not None:
            sigma, following = (scheduler.sigmas[scheduler.step_index + shift].item() for shift in (-1, 0))
            self._levels = sigma, following
            self._velocity = (latents.float() - self._before.float()) / (following - sigma)

    def _scores(self, pipe: Any, tensors: dict[str, Any], sigma: Tensor) -> Tensor:
        latents = tensors["latents"].float()
        levels = sigma.to(latents).expand(len(latents))
        texts = tuple(self._prompts[owner] for owner in self._owners.tolist())
        if self._velocity is None and RewardHooks.of(self._reward).needs_velocity and bool(sigma > 0):
            raise ValueError("Expected a first choice after the second step or later for this reward; add steps.")
        more: dict[str, Any] = {"velocity": self._velocity, "prompts": texts, "fps": frame_rate(pipe)}
        conditioning = Conditioning(tensors["prompt_embeds"].float(), **more)
        with torch.no_grad():
            raw = self._reward(latents, levels, conditioning)
        return weighted_score(self._reward, raw, self._weights).float().cpu()

    def _best(self, scores: Tensor) -> Tensor:
        rows = [rows[scores[rows].argmax()] for rows in self._groups()]
        return torch.stack(rows)

    def _drawn(self, scores: Tensor) -> Tensor:
        drawn = []
        for rows in self._groups():
            if self._settings.noise:
                gained = (scores[rows] - self.scores[rows]) / self._settings.temperature
                drawn.append(rows[systematic(gained, self._generator)])
                continue
            chances = (scores[rows] / self._settings.temperature).softmax(dim=0)
            picks = torch.multinomial(chances, self._settings.candidates, replacement=True, generator=self._generator)
            drawn.append(rows[picks.unique()])
        return torch.cat(drawn)

    def _groups(self) -> list[Tensor]:
        return [(self._owners == owner).nonzero()[:, 0] for owner in self._owners.unique()]


def _seeds(seeds: Sequence[Sequence[int]] | None, prompts: int, candidates: int) -> list[int]:
    rows = [range(candidates)] * prompts if seeds is None else seeds
    if len(rows) != prompts or any(len(row) != candidates for row in rows):
        raise ValueError(
            f"Expected {candidates} seeds for each of {prompts} prompts, but got {[len(row) for row in rows]}; "
            "give every candidate its own."
        )
    return [seed for row in rows for seed in row]


def _reward(pipe: Any) -> Reward:
    reward = getattr(pipe, "reward_model", None)
    if reward is None:
        raise ValueError(
            "Expected a pipeline with a reward to choose by, but `reward_model` is None; load one with "
            "`from_pretrained(..., reward_model=...)`, or pass a `judge` to `best_of_n`."
        )
    return reward  # type: ignore[no-any-return]


def _check_thinning(pipe: Any, settings: Search) -> None:
    name = type(pipe).__name__
    if (settings.moments or settings.noise) and name not in THINNABLE:
        raise ValueError(
            f"Expected a pipeline that can give up candidates on the way ({', '.join(THINNABLE)}), but got {name}; "
            "use best-of-n, that is no `moments`."
        )
    if settings.noise and type(pipe.scheduler).__name__ not in MEMORYLESS:
        raise ValueError(
            f"Expected a solver without memory for particles ({', '.join(MEMORYLESS)}), but got "
            f"{type(pipe.scheduler).__name__}, which would carry on without the fresh noise; use the Euler solver, or "
            "noise=0."
        )
