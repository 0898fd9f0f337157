"""Run a recipe: load the pipeline once, sample a seed at a time, judge what came out."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from nrg_sampler.checkpoints import BUNDLED, bundled_folder, pipeline_source, read_sampling
from nrg_sampler.judges.base import Judge
from nrg_sampler.rewards import Conditioning, RewardWeights
from nrg_sampler.runs.manifest import Clip, Manifest, model_fingerprint, versions
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.schedulers import make_scheduler
from nrg_sampler.search import Search, candidate_seeds, search
from nrg_sampler.video import Frames, to_uint8

DEFAULT_FPS = 16  # of Wan models
Scores = dict[str, dict[str, float]]
OnStep = Callable[[int, torch.Tensor], None]


class Sampler:
    """A loaded pipeline that samples one recipe.

    Args:
        recipe: What to sample.
        pipe: The loaded pipeline of the recipe, which stays as it is; loaded here by default.
        judges: Who grades the finished clips, by name, besides the reward and, for the bundled model, the oracle.

    Raises:
        ValueError: If the model, the reward or the prompt does not fit.
    """

    def __init__(self, recipe: Recipe, pipe: Any = None, judges: Mapping[str, Judge] | None = None) -> None:
        self.pipe = _with_scheduler(pipe or load(recipe), recipe.scheduler)
        recipe = recipe.settled(self.pipe)
        self.recipe, self.judges = recipe, judges or {}
        _check_guidance(recipe, self.pipe.reward_model)
        self._search = _search(recipe, self.pipe.reward_model)
        self.fps = recipe.fps or float(read_sampling(pipeline_source(recipe.model)).get("fps", DEFAULT_FPS))
        self.fingerprints = _fingerprints(recipe)

    def sample(self, seed: int, name: str = "guided", on_step: OnStep | None = None) -> tuple[Frames, Clip]:
        """Sample one video, or the best of several candidates if the recipe has a search.

        Args:
            seed: Of the noise; drawn on the CPU, so that every device starts from the same.
            name: ``"guided"``, or ``"unguided"`` for the same without the reward and without a search.
            on_step: Called after each step with its number from 0 and the latents; it stops the run by raising.

        Returns:
            The frames, uint8, shape ``(T, H, W, 3)``, and what is known about them.
        """
        if self._search is None or name == "unguided":
            return self._sample_one(seed, name, on_step)
        seeds = candidate_seeds(seed, self._search.candidates)
        if self._search.moments or self._search.noise:
            return self._resample(seeds, name)
        best, seconds = None, 0.0
        for candidate in seeds:  # one at a time, in the memory of one
            frames, clip = self._sample_one(candidate, name, on_step)
            seconds += clip.seconds
            score = self._score(clip)
            if best is None or score > best[0]:
                best = score, frames, clip
        assert best is not None
        return best[1], replace(best[2], seconds=round(seconds, 3))

    def _score(self, clip: Clip) -> float:
        assert self._search is not None
        weights = RewardWeights.parse(self._search.weights).resolve(self.pipe.reward_model.axes)
        readings = clip.scores["reward"]
        return sum(weight * readings[axis] for weight, axis in zip(weights, self.pipe.reward_model.axes, strict=True))

    def _resample(self, seeds: list[int], name: str) -> tuple[Frames, Clip]:
        assert self._search is not None
        guidance = self.recipe.guidance
        started = time.perf_counter()
        self.pipe.set_progress_bar_config(desc=f"{len(seeds)} candidates, {name}", disable=not sys.stderr.isatty())
        found = search(
            self.pipe,
            self.recipe.prompt,
            self._search,
            [seeds],
            reward_guidance=guidance,
            output_type="np",
            **self.recipe.sampling,
        )
        seconds = time.perf_counter() - started
        frames = to_uint8(found.frames[0])
        trace = json.loads(self.pipe.trace.to_json())["steps"] if guidance.scale else []
        return frames, Clip.of(
            name, frames, seconds, scores=self._judge(frames, found.latents, found.prompt_embeds), trace=trace
        )

    def _sample_one(self, seed: int, name: str, on_step: OnStep | None) -> tuple[Frames, Clip]:
        guidance = replace(self.recipe.guidance, scale=0.0) if name == "unguided" else self.recipe.guidance
        last: dict[str, torch.Tensor] = {}

        def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            last.update(tensors)
            if on_step is not None:
                on_step(step, tensors["latents"])
            return {}

        self.pipe.set_progress_bar_config(desc=f"seed {seed}, {name}", disable=not sys.stderr.isatty())
        started = time.perf_counter()
        output = self.pipe(
            self.recipe.prompt,
            reward_guidance=guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
            **self.recipe.sampling,
        )
        seconds = time.perf_counter() - started
        frames = to_uint8(output.frames[0])
        trace = json.loads(self.pipe.trace.to_json())["steps"] if guidance.scale else []
        return frames, Clip.of(name, frames, seconds, scores=self._judge(frames, **last), trace=trace)

    def manifest(self, command: str, seed: int, clips: Sequence[Clip]) -> Manifest:
        """Return what stands beside the file of these clips."""
        recipe = self.recipe
        return Manifest(
            command=command,
            prompt=recipe.prompt,
            seed=seed,
            model=recipe.model,
            reward=recipe.reward,
            fingerprints=self.fingerprints,
            sampling={**self.pipe.sampling_defaults, **recipe.sampling},
            guidance=recipe.guidance_entries(),
            device=recipe.device,
            dtype=recipe.dtype,
            fps=self.fps,
            clips=list(clips),
            versions={**versions(), "hardware": _hardware(recipe.device)},
            scheduler=recipe.scheduler,
            search=recipe.search,
            proposed=recipe.proposed,
            checkpointing=recipe.checkpointing,
        )

    def _judge(self, frames: Frames, latents: torch.Tensor, prompt_embeds: torch.Tensor) -> Scores:
        reward = self.pipe.reward_model
        target = target_scores(reward, latents, prompt_embeds) if reward is not None else None
        measured = oracle_scores(frames, self.recipe.prompt) if self.recipe.model == BUNDLED else None
        own = {judge: scores for judge, scores in (("reward", target), ("oracle", measured)) if scores}
        return {**own, **judge_scores(self.judges, frames, self.recipe.prompt, self.fps)}


def target_scores(reward: Any, latents: torch.Tensor, prompt_embeds: torch.Tensor) -> dict[str, float]:
    """Read the reward that guides off the finished latents, in its standard deviations.

    Args:
        reward: Any reward.
        latents: Of one video, shape ``(1, C, T, H, W)``, sigma 0.
        prompt_embeds: Shape ``(1, L, D)``.
    """
    from nrg_sampler.rewards.base import normalised

    with torch.no_grad():
        raw = reward(latents.float(), latents.new_zeros(len(latents)).float(), Conditioning(prompt_embeds.float()))
    return _by_axis(reward.axes, normalised(reward, raw)[0])


def judge_scores(judges: Mapping[str, Judge], frames: Frames, prompt: str, fps: float) -> Scores:
    """Ask judges about one video.

    Args:
        judges: Who grades, by name.
        frames: Shape ``(T, H, W, 3)``.
        prompt: What was asked for.
        fps: Frames per second.
    """
    clip = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None] / 255  # (1, 3, T, H, W)
    return {name: _by_axis(judge.axes, judge(clip, [prompt], fps)[0]) for name, judge in judges.items()}


def oracle_scores(frames: Frames, prompt: str) -> dict[str, float] | None:
    """Measure a clip of the bundled world in its pixels; ``None`` for a prompt outside that world.

    Args:
        frames: Shape ``(T, H, W, 3)``.
        prompt: What was asked for.
    """
    from nrg_sampler.shapes.oracle import grade
    from nrg_sampler.shapes.scenes import parse

    asked = parse(prompt)
    if asked is None:
        return None
    clip = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None] / 255  # (1, 3, T, H, W)
    return _by_axis(("VQ", "MQ", "TA"), grade(clip, [asked])[0])


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


def _check_guidance(recipe: Recipe, reward: Any) -> None:
    """Find out before the first, unguided video what would only stop the second, guided one."""
    if recipe.guidance.scale == 0:
        return
    if reward is None:
        raise ValueError(
            f"Expected a reward, but {recipe.model!r} comes without one; name its folder with --reward, or sample "
            "unguided with --scale 0."
        )
    recipe.guidance.check(reward)


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


def _fingerprints(recipe: Recipe) -> dict[str, str]:
    reward = BUNDLED if recipe.reward is None and recipe.model == BUNDLED else recipe.reward
    sources = {
        "model": pipeline_source(recipe.model),
        "reward": bundled_folder("reward") if reward == BUNDLED else reward,
    }
    found = {name: model_fingerprint(source) for name, source in sources.items() if source is not None}
    return {name: digest for name, digest in found.items() if digest is not None}
