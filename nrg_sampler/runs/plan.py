"""What a guided run costs in network evaluations, seconds and memory, before it is paid."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from nrg_sampler.cost.pixels import gradient_of, is_countable
from nrg_sampler.cost.prediction import block_costs, predicted_ratio
from nrg_sampler.cost.workloads import Workload
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.trace import GuidanceWarning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.runs.recipe import Recipe

if TYPE_CHECKING:
    from nrg_sampler.runs.manifest import Clip
    from nrg_sampler.runs.sampler import Sampler

BACKWARD = 1.0  # a backward pass to the input alone costs about one forward pass
# of Wan pipelines
WAN_DEFAULTS = {
    "num_inference_steps": 50,
    "guidance_scale": 5.0,
    "height": 480,
    "width": 832,
    "num_frames": 81,
    "max_sequence_length": 512,
}
MIB = 2**20


@dataclass(frozen=True)
class Pace:
    """How fast a pipeline runs here, in seconds.

    Args:
        step: One unguided denoising step.
        reward: One gradient of the reward.
        rest: The prompt and the decoding, once a video.
        memory_mb: Memory in use while it ran: on a GPU its peak, else that of the process.
    """

    step: float
    reward: float
    rest: float
    memory_mb: float

    @classmethod
    def of(cls, clip: Clip, moments: Sequence[float], gradients: int, device: str) -> Pace:
        """Read the pace off a finished run.

        Args:
            clip: What is known about it.
            moments: When each step ended, at least two.
            gradients: How many of the reward it was to take; those at pure noise are not taken.
            device: Where it ran.
        """
        seconds = [row.get("seconds", 0.0) for row in clip.trace] or [0.0]
        steps = moments[-1] - moments[0] - sum(seconds[1:])  # the first step ends at the first moment
        step = max(0.0, steps / (len(moments) - 1))
        taken = gradients - sum(row.get("skipped") == "sigma" for row in clip.trace)
        return cls(
            step=step,
            reward=sum(seconds) / max(1, taken),
            rest=max(0.0, clip.seconds - sum(seconds) - step * len(moments)),
            memory_mb=_memory_mb(device),
        )


@dataclass(frozen=True)
class Memory:
    """What a guided step takes and what there is, in MB.

    Args:
        needed: Highest memory of a step, counted, with the weights of the whole pipeline.
        available: What is free on the device, and what the pipeline holds there already.
    """

    needed: float
    available: float


@dataclass(frozen=True)
class Plan:
    """The cost of one video.

    Args:
        steps: Denoising steps.
        guided_steps: How many of them the reward guides.
        gradients: How often it is differentiated for that.
        candidates: Videos that the one is chosen from.
        evaluations: Of the whole transformer, without the reward; at most, if candidates are given up on the way.
        reward_evaluations: What the reward adds, in evaluations of the transformer: by the formula of
            ``predicted_ratio`` for the blocks of a Wan transformer, else by the number of parameters.
        ratio: All of it over one unguided video.
        weights_mb: Size of the pipeline.
        reward_mb: Size of the reward.
        seconds: Expected time of a guided video; ``None`` if the pace is not known.
        unguided_seconds: The same without the reward.
        memory_mb: Expected memory; ``None`` likewise.
        needed_mb: Highest memory of a guided step, counted; ``None`` where it is not, see :func:`count_memory`.
        available_mb: Memory that is free on the device; ``None`` likewise.
    """

    steps: int
    guided_steps: int
    gradients: int
    candidates: int
    evaluations: int
    reward_evaluations: float
    ratio: float
    weights_mb: float
    reward_mb: float
    seconds: float | None = None
    unguided_seconds: float | None = None
    memory_mb: float | None = None
    needed_mb: float | None = None
    available_mb: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a guided step fits the memory, as far as that is known."""
        return self.needed_mb is None or self.available_mb is None or self.needed_mb <= self.available_mb

    def __str__(self) -> str:
        best = f" for each of {self.candidates} candidates" if self.candidates > 1 else ""
        lines = [
            f"{self.steps} steps{best}, {self.evaluations} evaluations of the transformer.",
            f"The reward guides {self.guided_steps} steps by {self.gradients} gradients at the cost of about "
            f"{self.reward_evaluations} evaluations: {self.ratio} times an unguided run.",
            f"Best of {self.ratio} unguided videos costs the same.",
            f"Weights {self.weights_mb} MB and {self.reward_mb} MB for the reward.",
        ]
        if self.seconds is not None:
            lines.append(
                f"About {self.seconds:.1f} s guided and {self.unguided_seconds:.1f} s unguided here, "
                f"with {self.memory_mb:.0f} MB in use."
            )
        if self.needed_mb is not None:
            lines.append(f"A guided step needs about {self.needed_mb:.0f} MB; {self.available_mb:.0f} MB are free.")
        if not self.fits:
            lines.append(
                "That will not fit: let the reward save memory (`reward.enable_gradient_checkpointing()`, "
                "--checkpointing), read fewer frames (`frames`) or a part of the picture (`crop`), offload a judge of "
                "pixels (`offload`), use bfloat16, or sample a smaller video."
            )
        return "\n".join(lines)


def plan(pipe: Any, recipe: Recipe, pace: Pace | None = None, memory: Memory | None = None) -> Plan:
    """Count what a video of a recipe would cost.

    Args:
        pipe: A loaded pipeline.
        recipe: What would be sampled.
        pace: How fast it runs here, from :func:`measure` or an earlier run of the same size.
        memory: What it takes, from :func:`count_memory`.
    """
    sampling = {**WAN_DEFAULTS, **pipe.sampling_defaults, **recipe.sampling}
    steps = int(sampling["num_inference_steps"])
    guided = sum(recipe.guidance.skips(step, steps) is None for step in range(steps)) if recipe.guidance.scale else 0
    gradients = recipe.guidance.gradients(steps)
    single = steps * (2 if sampling["guidance_scale"] > 1 else 1)
    candidates = recipe.search["candidates"] if recipe.search else 1
    ahead = recipe.lookahead
    runs = candidates * (ahead.settings.cost(steps) if ahead and ahead.judge else 1.0)
    modules = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    modules.pop("reward_model", None)
    reward = pipe.reward_model  # which may be a plain callable
    passes_back = resolve(recipe.guidance, reward).passes_back if gradients else 1
    extra = runs * gradients * _gradient_cost(pipe, reward, sampling, passes_back, recipe.guidance)
    counted = Plan(
        steps=steps,
        guided_steps=guided,
        gradients=gradients,
        candidates=candidates,
        evaluations=round(runs * single),
        reward_evaluations=round(extra, 1),
        ratio=round(runs + extra / single, 2),
        weights_mb=round(sum(map(_megabytes, modules.values())), 1),
        reward_mb=round(_megabytes(reward), 1),
        needed_mb=None if memory is None else round(memory.needed, 1),
        available_mb=None if memory is None else round(memory.available, 1),
    )
    if pace is None:
        return counted
    unguided = steps * pace.step + pace.rest
    return replace(
        counted,
        seconds=round(runs * (unguided + recipe.guidance.evaluated_steps(steps) * pace.reward), 2),
        unguided_seconds=round(unguided, 2),
        memory_mb=round(pace.memory_mb, 1),
    )


def _gradient_cost(
    pipe: Any, reward: Any, sampling: dict[str, Any], passes_back: int, guidance: RewardGuidance
) -> float:
    """Return the cost of one gradient in evaluations of the transformer."""
    workload = _workload(pipe, sampling)
    if workload and is_countable(reward):
        single = sum(cost.forward for cost in block_costs(pipe.transformer, workload.tokens))
        return passes_back * gradient_of(reward, workload.latents, guidance).flops / single
    if workload is None or not isinstance(reward, LatentReward):
        return _count(reward) / max(1, _count(pipe.transformer)) * (1 + BACKWARD * passes_back)
    ratio = predicted_ratio(
        block_costs(pipe.transformer, workload.tokens),
        len(reward.blocks),
        1,
        passes_back,
        read=block_costs(pipe.transformer, workload.read_by(guidance).tokens),
        shared=guidance.forward == "shared",
        checkpointing=reward.gradient_checkpointing,
    )
    return ratio - 1


def _workload(pipe: Any, sampling: dict[str, Any]) -> Workload | None:
    """Describe what a step of a Wan pipeline computes; ``None`` for other pipelines, whose latents differ."""
    transformer = pipe.transformer
    if type(transformer).__name__ != "WanTransformer3DModel":
        return None
    frames = (sampling["num_frames"] - 1) // pipe.vae_scale_factor_temporal + 1
    sides = (sampling[side] // pipe.vae_scale_factor_spatial for side in ("height", "width"))
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    return Workload(
        name="plan",
        transformer="WanTransformer3DModel",
        config=config,
        latents=(1, config["in_channels"], frames, *sides),
        about="a recipe",
        prompt_tokens=sampling["max_sequence_length"],
        evaluations=2 if sampling["guidance_scale"] > 1 else 1,
        reward=_reading(pipe.reward_model) if isinstance(pipe.reward_model, LatentReward) else {},
    )


def _reading(reward: LatentReward) -> dict[str, Any]:
    """Return what of a latent reward's config shapes what comes after its blocks."""
    names = (
        "axes",
        "text_axes",
        "num_reads",
        "num_token_reads",
        "num_members",
        "null_tokens",
        "pooling",
        "separate_queries",
    )
    return {name: reward.config[name] for name in names}


def count_memory(pipe: Any, recipe: Recipe) -> Memory | None:
    """Count the memory of a step; ``None`` where it cannot be: no Wan pipeline, another reward, or offloaded weights.

    The step runs with fake tensors, which takes no memory. Decoding comes after the last step and is not in it.

    Args:
        pipe: A loaded pipeline.
        recipe: What would be sampled.
    """
    from nrg_sampler.cost.step import count_step

    workload = _workload(pipe, {**WAN_DEFAULTS, **pipe.sampling_defaults, **recipe.sampling})
    reward, modules = pipe.reward_model, [part for part in pipe.components.values() if hasattr(part, "parameters")]
    offloaded = any(_is_offloaded(part) for part in modules)
    if workload and is_countable(reward) and not offloaded:
        return _memory_of_pixels(pipe, workload, recipe)
    if workload is None or not isinstance(reward, LatentReward) or offloaded:
        return None
    checkpointing, shared = reward.gradient_checkpointing, recipe.guidance.forward == "shared"
    dtype = getattr(torch, recipe.dtype)
    settings = RewardGuidance(frames=recipe.guidance.frames, crop=recipe.guidance.crop)
    unguided, guided, _ = count_step(workload, len(reward.blocks), checkpointing, dtype, shared, settings)
    loaded = sum(map(_megabytes, modules))
    others = loaded - _megabytes(pipe.transformer) - _megabytes(reward)
    peak = guided.peak_bytes if recipe.guidance.scale else unguided.peak_bytes
    return Memory(peak / MIB + others, available_mb(recipe.device) + loaded)


def _memory_of_pixels(pipe: Any, workload: Workload, recipe: Recipe) -> Memory:
    from nrg_sampler.cost.step import count_unguided

    unguided, transformer = count_unguided(workload, getattr(torch, recipe.dtype))
    peak, judge = unguided.peak_bytes, _megabytes(pipe.reward_model.judge)
    if recipe.guidance.scale:
        gradient = gradient_of(pipe.reward_model, workload.latents, recipe.guidance)
        peak = max(peak, transformer + gradient.working) + gradient.judge
    modules = [
        part for name, part in pipe.components.items() if hasattr(part, "parameters") and name != "reward_model"
    ]
    others = sum(map(_megabytes, modules)) - _megabytes(pipe.transformer)
    return Memory(peak / MIB + others, available_mb(recipe.device) + sum(map(_megabytes, modules)) + judge)


def _is_offloaded(part: torch.nn.Module) -> bool:
    """Whether a part's weights come and go, by accelerate's hooks or by group offloading of any of its modules."""
    registries = (getattr(module, "_diffusers_hook", None) for module in part.modules())
    return hasattr(part, "_hf_hook") or any(
        "group_offload" in name for found in registries if found for name in found.hooks
    )


def available_mb(device: str) -> float:
    """Return the memory that is free on a device."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, to use again
        return float(torch.cuda.mem_get_info(device)[0] + kept) / MIB
    import psutil

    return float(psutil.virtual_memory().available) / MIB


def measure(sampler: Sampler, steps: int = 2) -> Pace:
    """Time a run of a few steps; its video is thrown away."""
    everywhere = replace(sampler.recipe.guidance, start=0.0, stop=1.0, every=1)
    sampling = {**sampler.recipe.sampling, "num_inference_steps": steps}
    short = replace(sampler.recipe, guidance=everywhere, sampling=sampling, search=None)
    moments: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuidanceWarning)  # of a run that nobody looks at
        _, clip = type(sampler)(short, sampler.pipe).sample(
            seed=0, on_step=lambda step, latents: moments.append(time.perf_counter())
        )
    return Pace.of(clip, moments, everywhere.gradients(steps), sampler.recipe.device)


def _memory_mb(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if hasattr(module, "parameters") else 0


def _megabytes(module: Any) -> float:
    if not hasattr(module, "parameters"):
        return 0.0
    return float(sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20)
