"""Run a recipe: load the pipeline once, sample a seed at a time, judge what came out."""

from __future__ import annotations

import inspect
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from nrg_sampler.checkpoints import BUNDLED, bundled_folder, pipeline_source, read_sampling
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.hosts.finished import last_step
from nrg_sampler.hosts.sampling import SampledClips, sample_clips
from nrg_sampler.judges.base import Judge
from nrg_sampler.lookahead import LookaheadRun, Looks, lookahead
from nrg_sampler.rewards import Conditioning, RewardWeights
from nrg_sampler.rewards.base import score_clean
from nrg_sampler.rewards.by_name import local_fingerprints
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.manifest import Clip, Manifest, model_fingerprint, versions
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.schedulers import make_scheduler
from nrg_sampler.search import Search, candidate_seeds, search
from nrg_sampler.video import Frames, to_uint8

DEFAULT_FPS = 16  # of Wan models
Scores = dict[str, dict[str, float]]
OnStep = Callable[[int, torch.Tensor], None]


def clip_name(guided: bool) -> str:
    """Return what a clip is called in its file."""
    return "guided" if guided else "unguided"


class Sampler:
    """A loaded pipeline that samples one recipe.

    Args:
        recipe: What to sample.
        pipe: The loaded pipeline of the recipe, which stays as it is; loaded here by default.
        judges: Who grades the finished clips, by name, besides the reward and, for the bundled model, the oracle.
        looks: The look-ahead samples of the recipe, if their scores are given in it and they are at hand; sampled
            again by default.
        keep_latents: Whether ``finished`` is kept.

    Attributes:
        finished: Latents of the last clip, shape ``(1, C, T, H, W)``, which may serve as a look-ahead sample.

    Raises:
        ValueError: If the model, the reward or the prompt does not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        pipe: Any = None,
        judges: Mapping[str, Judge] | None = None,
        looks: Looks | None = None,
        keep_latents: bool = False,
    ) -> None:
        self.pipe = _with_scheduler(pipe or load(recipe), recipe.scheduler)
        recipe = recipe.settled(self.pipe)
        self.recipe, self.judges = recipe, judges or {}
        _check_sampling(recipe, self.pipe)
        _check_guidance(recipe, self.pipe.reward_model)
        self._search = _search(recipe, self.pipe.reward_model)
        self.finished: torch.Tensor | None = None
        self._looks, self._keeps = looks, keep_latents
        self._looking_judge = recipe.lookahead.load_judge(recipe, self.pipe.reward_model) if recipe.lookahead else None
        self.fps = recipe.fps or float(read_sampling(pipeline_source(recipe.model)).get("fps", DEFAULT_FPS))
        self.fingerprints = _fingerprints(recipe, self.pipe.reward_model)

    def sample(self, seed: int, guided: bool = True, on_step: OnStep | None = None) -> tuple[Frames, Clip]:
        """Sample one video, or the best of several candidates if the recipe has a search.

        Args:
            seed: Of the noise; drawn on the CPU, so that every device starts from the same.
            guided: Whether the reward acts; without it there is no search either.
            on_step: Called after each step with its number from 0 and the latents; it stops the run by raising.

        Returns:
            The frames, uint8, shape ``(T, H, W, 3)``, and what is known about them.
        """
        if self._search is None or not guided:
            return self._sample_one(seed, guided, on_step)
        seeds = candidate_seeds(seed, self._search.candidates)
        if self._search.moments or self._search.noise:
            return self._resample(seeds, self._search)
        best, seconds = None, 0.0
        for candidate in seeds:  # one at a time, in the memory of one
            frames, clip = self._sample_one(candidate, guided, on_step)
            seconds += clip.seconds
            score = self._score(clip, self._search)
            if best is None or score > best[0]:
                best = score, frames, clip
        assert best is not None
        return best[1], replace(best[2], seconds=round(seconds, 3))

    def _score(self, clip: Clip, settings: Search) -> float:
        axes = self.pipe.reward_model.axes
        weights = RewardWeights.parse(settings.weights).resolve(axes)
        return sum(weight * clip.scores["reward"][axis] for weight, axis in zip(weights, axes, strict=True))

    def _sample_one(self, seed: int, guided: bool, on_step: OnStep | None) -> tuple[Frames, Clip]:
        guidance = self.recipe.guidance if guided else replace(self.recipe.guidance, scale=0.0)
        self._show(f"seed {seed}, {clip_name(guided)}")

        def watch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step, tensors["latents"])
            return {}

        started = time.perf_counter()
        arguments = {"reward_guidance": guidance, "output_type": "np", **self.recipe.sampling}
        with last_step(self.pipe) if self._keeps else nullcontext() as last, self._looking(seed, guided) as ahead:
            clips = sample_clips(self.pipe, [self.recipe.prompt], [seed], watch, **arguments)
            self.finished = last.read().latents if last else None
        frames, clip = self._finished(clips, clip_name(guided), time.perf_counter() - started, guidance)
        return frames, clip if ahead is None else replace(clip, lookahead=ahead.to_dict())

    @contextmanager
    def _looking(self, seed: int, guided: bool) -> Iterator[LookaheadRun | None]:
        """Let the look-ahead samples of the recipe pull a guided clip."""
        ahead = self.recipe.lookahead
        if ahead is None or not guided:
            yield None
            return
        looks = self._picked(ahead) if ahead.judge is None else None
        settings = replace(ahead.settings, seed=seed)
        with lookahead(self.pipe, self._looking_judge, settings, looks=looks) as run:
            yield run

    def _picked(self, ahead: Ahead) -> Looks:
        if self._looks is None:
            before = Sampler(replace(self.recipe, lookahead=ahead.before), self.pipe, keep_latents=True)
            latents = []
            for seed in ahead.seeds:
                before.sample(seed)
                assert before.finished is not None
                latents.append(before.finished)
            self._looks = Looks(torch.stack(latents, dim=1), torch.tensor([ahead.scores]))
        return self._looks

    def _resample(self, seeds: list[int], settings: Search) -> tuple[Frames, Clip]:
        guidance = self.recipe.guidance
        self._show(f"{len(seeds)} candidates, {clip_name(True)}")
        started = time.perf_counter()
        arguments = {"reward_guidance": guidance, "output_type": "np", **self.recipe.sampling}
        best = search(self.pipe, self.recipe.prompt, settings, [seeds], **arguments)
        clips = SampledClips(best.frames, best.latents, best.prompt_embeds)
        return self._finished(clips, clip_name(True), time.perf_counter() - started, guidance)

    def _finished(
        self, clips: SampledClips, name: str, seconds: float, guidance: RewardGuidance
    ) -> tuple[Frames, Clip]:
        """Return the frames of a single clip, and the clip with its scores and trace."""
        frames = to_uint8(clips.frames[0])
        trace = json.loads(self.pipe.trace.to_json())["steps"] if guidance.scale else []
        scores = self._judge(frames, clips.latents, clips.prompt_embeds)
        return frames, Clip.of(name, frames, seconds, scores=scores, trace=trace)

    def _show(self, text: str) -> None:
        self.pipe.set_progress_bar_config(desc=text, disable=not sys.stderr.isatty())

    def manifest(self, command: str, seed: int, clips: Sequence[Clip]) -> Manifest:
        """Return what stands beside the file of these clips."""
        sampling = {**self.pipe.sampling_defaults, **self.recipe.sampling}
        return Manifest(
            command=command,
            recipe=replace(self.recipe, sampling=sampling, fps=self.fps),
            seed=seed,
            fingerprints=self.fingerprints,
            clips=list(clips),
            versions={**versions(), "hardware": _hardware(self.recipe.device)},
        )

    def _judge(self, frames: Frames, latents: torch.Tensor, prompt_embeds: torch.Tensor) -> Scores:
        reward = self.pipe.reward_model
        target = None
        if reward is not None:
            conditioning = Conditioning(prompt_embeds.float(), prompts=(self.recipe.prompt,), fps=self.fps)
            target = _by_axis(reward.axes, score_clean(reward, latents, conditioning)[0])
        measured = oracle_scores(frames, self.recipe.prompt) if self.recipe.model == BUNDLED else None
        own = {judge: scores for judge, scores in (("reward", target), ("oracle", measured)) if scores}
        for name, judge in self.judges.items():
            try:
                own |= judge_scores({name: judge}, frames, self.recipe.prompt, self.fps)
            except ValueError as error:  # which does not cost the clip, now that it is made
                warnings.warn(f"The judge {name} gave no scores. {error}", stacklevel=2)
        return own


def judge_scores(judges: Mapping[str, Judge], frames: Frames, prompt: str, fps: float) -> Scores:
    """Let judges grade one video.

    Args:
        judges: Who grades, by name.
        frames: Shape ``(T, H, W, 3)``.
        prompt: The text of the video.
        fps: Frames per second.
    """
    clip = torch.from_numpy(np.require(frames, requirements="W")).permute(3, 0, 1, 2)[None] / 255  # (1, 3, T, H, W)
    return {name: _by_axis(judge.axes, judge(clip, [prompt], fps)[0]) for name, judge in judges.items()}


def oracle_scores(frames: Frames, prompt: str) -> dict[str, float] | None:
    """Measure a clip of the bundled world in its pixels; ``None`` where the oracle cannot.

    That is where the prompt is not of that world, the clip has fewer than four frames, or they are not square.

    Args:
        frames: Shape ``(T, H, W, 3)``.
        prompt: The text of the video.
    """
    from nrg_sampler.shapes.oracle import grade, is_measurable
    from nrg_sampler.shapes.scenes import parse

    scene = parse(prompt)
    if scene is None or not is_measurable(*frames.shape[:3]):
        return None
    clip = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None] / 255  # (1, 3, T, H, W)
    return _by_axis(("VQ", "MQ", "TA"), grade(clip, [scene])[0])


def _by_axis(axes: Sequence[str], values: torch.Tensor) -> dict[str, float]:
    readings = zip(axes, values.tolist(), strict=True)
    return {axis: round(value, 4) for axis, value in readings if math.isfinite(value)}


def load(recipe: Recipe) -> Any:
    """Load the pipeline with its reward onto the device."""
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline

    quiet_unless_watched()
    given = {} if recipe.reward is None else {"reward_model": recipe.reward}
    pipe = NRGFlowPipeline.from_pretrained(recipe.model, dtype=getattr(torch, recipe.dtype), **given)
    if recipe.checkpointing and pipe.reward_model is not None:
        if not hasattr(pipe.reward_model, "enable_gradient_checkpointing"):
            raise ValueError(
                f"Expected a latent reward for --checkpointing, but got {type(pipe.reward_model).__name__}; omit it."
            )
        pipe.reward_model.enable_gradient_checkpointing()
    return pipe.to(recipe.device)


def quiet_unless_watched() -> None:
    """Let models load without progress bars where stderr is no terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()


def _with_scheduler(pipe: Any, name: str | None) -> Any:
    """Return a pipeline that shares every component with ``pipe`` but the scheduler."""
    if name is None:
        return pipe
    changed = type(pipe).from_pipe(pipe)
    changed.register_modules(scheduler=make_scheduler(name, pipe.scheduler))
    return changed


def _hardware(device: str) -> str:
    """Name what decides the order of floating-point sums."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def _check_sampling(recipe: Recipe, pipe: Any) -> None:
    """Refuse arguments that the pipeline does not take, such as those of another one's manifest."""
    taken = inspect.signature(pipe.__call__).parameters
    if unknown := recipe.sampling.keys() - taken.keys():
        raise ValueError(
            f"Expected arguments of {type(pipe).__name__} for the sampling, but got {', '.join(sorted(unknown))}; "
            "leave them out."
        )


def _check_guidance(recipe: Recipe, reward: Any) -> None:
    """Find out before the first, unguided video what would only stop the second, guided one."""
    if recipe.guidance.scale == 0:
        return
    if reward is None:
        raise ValueError(
            f"Expected a reward, but {recipe.model!r} comes without one; name its folder with --reward, or sample "
            "unguided with --scale 0."
        )
    resolve(recipe.guidance, reward)


def _search(recipe: Recipe, reward: Any) -> Search | None:
    if recipe.search is None:
        return None
    if reward is None:
        raise ValueError(
            f"Expected a reward to choose candidates by, but {recipe.model!r} comes without one; name its folder with "
            "--reward, or sample one candidate."
        )
    settings = Search(**recipe.search)
    RewardWeights.parse(settings.weights).resolve(reward.axes)
    return settings


def _fingerprints(recipe: Recipe, loaded: Any) -> dict[str, str]:
    reward = BUNDLED if recipe.reward is None and recipe.model == BUNDLED else recipe.reward
    if names := getattr(loaded, "source", None):  # published judges of frames, each with its files
        judges = local_fingerprints(names)
        reward = None
    else:
        judges = {}
    sources = {
        "model": pipeline_source(recipe.model),
        "reward": bundled_folder("reward") if reward == BUNDLED else reward,
    }
    found = {name: model_fingerprint(source) for name, source in sources.items() if source is not None}
    return {name: digest for name, digest in {**found, **judges}.items() if digest is not None}
