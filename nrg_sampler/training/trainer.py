"""Train a latent reward on pairs through accelerate: a generator that yields the numbers of each step."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nrg_sampler.flow import noised
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from nrg_sampler.training.ensemble import LEVEL_PULL, bootstrap_weights, level_spread
from nrg_sampler.training.identity import first_identity, require_same_run, run_identity
from nrg_sampler.training.losses import LOSSES, Comparison
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.pairs import PairBatch, PairData
from nrg_sampler.training.schedule import warmup_cosine
from nrg_sampler.training.scoring import in_bfloat16, score_read
from nrg_sampler.training.trunk import TRUNK_MODULES, merge_trunk, open_trunk

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nrg_sampler.rewards.latent import LatentReward

MOST_SKIPPED = 10  # steps in a row whose gradient is not finite
ALONG = 1 << 60  # of the generators that draw steps of trajectories, so that they are no others
PULL = 1e-3  # logits have no natural origin: a light pull to 0 keeps them where half precision is fine


@dataclass(frozen=True)
class TrainerSettings:
    """Settings of a training run.

    Args:
        steps: Optimiser steps in all.
        batch: Pairs per step, over all processes and accumulated parts together.
        lr: Learning rate of queries, reads and heads.
        trunk_lr: Learning rate of the trunk or of its adapters.
        warmup: Steps over which the rates rise from 0; then they fall to 0 along a cosine.
        weight_decay: Of AdamW.
        ema: Decay of the moving average of the weights, which is what is saved.
        clip: Largest gradient norm.
        seed: Step ``n`` draws all its randomness from ``(seed, n)``, so a resumed run sees the same data.
        save_every: Steps between checkpoints.

    Raises:
        ValueError: If a number is out of its range.
    """

    steps: int = 1000
    batch: int = 16
    lr: float = 2e-4
    trunk_lr: float = 5e-5
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.998
    clip: float = 1.0
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` to be at least 1, but got {getattr(self, name)}.")
        for name in ("lr", "trunk_lr", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"Expected `{name}` to be above 0, but got {getattr(self, name)}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Expected `ema` from 0 to below 1, but got {self.ema}.")
        if self.warmup < 0 or self.weight_decay < 0:
            raise ValueError(
                f"Expected `warmup` and `weight_decay` of 0 or more, but got {self.warmup} and {self.weight_decay}."
            )


def train(
    reward: LatentReward,
    data: PairData,
    objective: Objective,
    settings: TrainerSettings,
    folder: Path,
    accelerator: Accelerator,
    bfloat16: bool = False,
) -> Generator[dict[str, float], None, None]:
    """Train ``reward`` in place, from the last whole checkpoint; at the end it holds the averaged weights.

    Whether the checkpoints are of this run is checked at once, the steps are done as they are asked for.

    The loss of a step depends neither on how many processes share it nor on how it is accumulated, save for rounding.

    Args:
        reward: As ``LatentReward.from_transformer`` made it; a merged, plain reward again at the end.
        data: The pairs.
        objective: The loss and how pairs are noised.
        settings: Steps, batch and learning rates.
        folder: Where checkpoints are kept.
        accelerator: Decides devices, processes and accumulation.
        bfloat16: Compute the forward pass under bfloat16 autocast; weights and checkpoints are float32 all the same.

    Returns:
        An iterator of ``{"step", "loss", ..., "grad_norm", "lr", "seconds"}`` after each step, the same in every
        process; empty if the last step was done before. It raises ``RunFailedError`` where a loss is not finite.

    Raises:
        ValueError: If the batch cannot be shared evenly, or the checkpoints are of another run.
    """
    from diffusers.training_utils import EMAModel

    shares = accelerator.num_processes * accelerator.gradient_accumulation_steps
    if settings.batch % shares:
        raise ValueError(
            f"Expected a batch that {accelerator.num_processes} processes with "
            f"{accelerator.gradient_accumulation_steps} accumulated parts each can share evenly, but got "
            f"{settings.batch} pairs; use a multiple of {shares}."
        )
    torch.manual_seed(settings.seed)  # adapters begin with random numbers
    open_trunk(reward, objective.trunk, objective.lora_rank)
    optimizer = _optimizer(reward, settings)
    schedule = LambdaLR(optimizer, lambda done: warmup_cosine(done, settings.warmup, settings.steps))
    model, prepared = accelerator.prepare(reward, optimizer)
    forward = in_bfloat16(model, accelerator.device) if bfloat16 else model
    average = EMAModel(reward.parameters(), decay=settings.ema)
    identity = run_identity(objective, vars(settings), data, tuple(reward.config.text_axes), bfloat16)
    start, skipped_before = 0, 0
    if (state := load_checkpoint(folder)) is not None:
        require_same_run(state["identity"], identity, first_identity(objective, vars(settings), data), folder)
        for part, name in ((reward, "model"), (optimizer, "optimizer"), (schedule, "schedule"), (average, "average")):
            part.load_state_dict(state[name])
        start, skipped_before = int(state["step"]), int(state.get("skipped", 0))
    average.to(accelerator.device)
    reward.train()

    def steps() -> Generator[dict[str, float], None, None]:
        skipped = skipped_before
        for step in range(start, settings.steps):
            started = time.monotonic()
            numbers = _step(model, forward, reward, data, objective, settings, step, prepared, accelerator)
            done = step + 1
            skipped = 0 if math.isfinite(numbers["grad_norm"]) else skipped + 1
            _require_finite(numbers, skipped, done, settings, folder)
            schedule.step()
            average.step(reward.parameters())
            if accelerator.is_main_process and (done % settings.save_every == 0 or done == settings.steps):
                parts = {"model": reward, "optimizer": optimizer, "schedule": schedule, "average": average}
                state = {name: part.state_dict() for name, part in parts.items()}
                save_checkpoint(folder, done, {**state, "step": done, "skipped": skipped, "identity": identity})
            numbers |= {"lr": float(schedule.get_last_lr()[0]), "seconds": time.monotonic() - started}
            yield {"step": done, **numbers}
        average.copy_to(reward.parameters())
        merge_trunk(reward)
        reward.requires_grad_(False).eval()

    return steps()


def _require_finite(
    numbers: Mapping[str, float], skipped: int, done: int, settings: TrainerSettings, folder: Path
) -> None:
    """Stop where going on would bring no reward; a single step whose gradient overflows is skipped.

    Raises:
        RunFailedError: If the loss is not finite, or the gradient of too many steps, with the last good checkpoint.
    """
    never = skipped == done == settings.steps
    if math.isfinite(numbers["loss"]) and skipped < MOST_SKIPPED and not never:
        return
    what = f"the loss is {numbers['loss']:g}"
    if math.isfinite(numbers["loss"]):
        what = f"the gradients of the last {skipped} steps are not finite"
    last = newest_checkpoint(folder)
    kept = f"the last good checkpoint is {last}" if last is not None else "there is no checkpoint yet"
    raise RunFailedError(
        f"Expected a finite loss and gradient, but at step {done} {what}; no reward was written, {kept}. Train again "
        "with a lower lr into another folder, and look at the labels and clips."
    )


def _optimizer(reward: LatentReward, settings: TrainerSettings) -> torch.optim.Optimizer:
    trunk: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in reward.named_parameters():
        if parameter.requires_grad:
            (trunk if name.startswith(TRUNK_MODULES) else rest).append(parameter)
    groups = [{"params": rest, "lr": settings.lr}, {"params": trunk, "lr": settings.trunk_lr}]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, betas=(0.9, 0.98), weight_decay=settings.weight_decay)


def _step(
    model: Any,
    forward: Any,
    reward: LatentReward,
    data: PairData,
    objective: Objective,
    settings: TrainerSettings,
    step: int,
    optimizer: Any,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step over ``settings.batch`` pairs, of which this process sees its share."""
    drawn = draw_indices(len(data), settings, step)
    members = reward.num_members
    count = members * _counted(data, objective, drawn).to(
        accelerator.device
    )  # of the whole step, the same in every process
    weights = bootstrap_weights(len(data), members, settings.seed).to(accelerator.device)
    accumulated, processes = accelerator.gradient_accumulation_steps, accelerator.num_processes
    size = settings.batch // (accumulated * processes)
    totals: dict[str, float] = {}
    norm = torch.zeros(())
    for part in range(accumulated):
        first = (part * processes + accelerator.process_index) * size
        places = range(first, first + size)
        steps = draw_steps(len(data.levels), objective, settings.seed, step, places) if objective.trajectories else ()
        batch = data.batch([drawn[place] for place in places], accelerator.device, steps)
        with accelerator.accumulate(model):
            comparison = compare(forward, batch, objective, settings.seed, step, places)
            parts = LOSSES[objective.loss](comparison).weighted(weights[[drawn[place] for place in places]].flatten())
            raw = torch.stack([comparison.first, comparison.second], dim=1)  # (size * members, 2, axes)
            pull = PULL * raw.square().mean() + LEVEL_PULL * level_spread(_by_member(raw, members))
            share = parts.per_axis(count).sum() + pull * size / settings.batch
            # accelerate divides by the accumulated parts, and processes average their gradients
            accelerator.backward(share * accumulated * processes)
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(reward.parameters(), settings.clip)
            if not accelerator.sync_gradients or torch.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad()
        for name, value in {"loss": share.item(), **parts.means(count), **_right(comparison)}.items():
            totals[name] = totals.get(name, 0.0) + value
    return {**_reduced(totals, accelerator), "grad_norm": float(norm)}


def draw_indices(count: int, settings: TrainerSettings, step: int) -> list[int]:
    """Draw the pairs of a step: every pair once before any comes again, in a new order each time."""
    start = step * settings.batch
    order: list[int] = []
    while len(order) < settings.batch:
        epoch, offset = divmod(start + len(order), count)
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
        order += shuffled[offset : offset + settings.batch - len(order)].tolist()
    return order


def draw_steps(count: int, objective: Objective, seed: int, step: int, places: Sequence[int]) -> list[int | None]:
    """Draw which of ``count`` kept steps each pair is read at, from generators of their own, see :func:`compare`."""
    generators = [
        torch.Generator().manual_seed(((seed * 1_000_003 + step) * 65_537 + place) ^ ALONG) for place in places
    ]
    return [objective.sample_step(count, generator) for generator in generators]


def _counted(data: PairData, objective: Objective, drawn: Sequence[int]) -> Tensor:
    """Count the pairs of a step that have a loss on each axis, ``(axes,)``."""
    rows = torch.as_tensor(drawn)
    preference, scores = data.preference[rows], () if data.scores is None else data.scores[rows].unbind(-1)
    zero = torch.zeros_like(preference)
    comparison = Comparison(zero, zero, preference, zero[:, 0], *scores)
    return LOSSES[objective.loss](comparison).counted.sum(dim=0)


def compare(
    model: Any, batch: PairBatch, objective: Objective, seed: int, step: int, places: Sequence[int]
) -> Comparison:
    """Score both clips of each pair, noised as the objective has it; one row of the result for each pair and member.

    Args:
        model: The reward, its wrapper in a distributed run, or its forward pass.
        batch: The pairs.
        objective: Noise level, noise and prompt dropout.
        seed: Of the run.
        step: Of the run.
        places: Where in the step the pairs stand; each draws its noise from ``(seed, step, place)``, so that it is
            the same in whichever process it ends up.
    """
    generators = [torch.Generator().manual_seed((seed * 1_000_003 + step) * 65_537 + place) for place in places]
    device, shape = batch.clean.device, tuple(batch.clean.shape[2:])
    sigma = torch.cat([objective.sample_sigma(1, generator) for generator in generators]).to(device)
    noise = torch.cat([objective.sample_noise(1, 2, shape, generator) for generator in generators]).to(device)
    dropped = torch.cat([objective.sample_dropped(1, generator) for generator in generators]).to(device)
    embeds, mask = batch.conditioning.prompt_embeds, batch.conditioning.prompt_mask
    assert embeds is not None  # PairData gives both
    assert mask is not None
    conditioning = Conditioning(embeds * ~dropped[:, None, None], mask & ~dropped[:, None])
    levels = sigma[:, None].expand(-1, 2)
    latents = noised(batch.clean.flatten(0, 1), noise.flatten(0, 1), levels.flatten()).unflatten(0, (-1, 2))
    velocity = torch.zeros_like(latents) if objective.reads_prediction else None  # of what is read clean
    if batch.steps is not None:
        along = batch.steps.read[:, None, None, None, None, None]
        latents = batch.steps.latents.where(along, latents)
        levels = batch.steps.sigma.where(batch.steps.read[:, None], levels)
        velocity = None if velocity is None else batch.steps.velocity.where(along, velocity)
    raw = score_read(model, latents, levels, conditioning, velocity, members=True)  # (B, 2, M, axes)
    sigma = levels.mean(dim=1)
    targets = (batch.preference, sigma, *(() if batch.scores is None else batch.scores.unbind(-1)))
    first, second = raw.transpose(1, 2).flatten(0, 1).unbind(1)  # each (B * M, axes)
    comparison = Comparison(first, second, *(part.repeat_interleave(raw.shape[2], dim=0) for part in targets))
    return replace(comparison, tilt=objective.tilt)


def _by_member(raw: Tensor, members: int) -> Tensor:
    """From ``(B * members, 2, axes)`` to ``(B, 2, members, axes)``."""
    split: Tensor = raw.unflatten(0, (-1, members))
    return split.transpose(1, 2)


def _right(comparison: Comparison) -> dict[str, float]:
    """Count the preferences that are ranked right, and all of them."""
    decided = comparison.preference.abs() == 1
    right = (comparison.difference.detach().sign() == comparison.preference) & decided
    return {"right": float(right.sum()), "decided": float(decided.sum())}


def _reduced(totals: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Sum over processes; the ranked pairs become an accuracy."""
    values = torch.tensor(list(totals.values()), dtype=torch.float64, device=accelerator.device)
    summed = dict(zip(totals, accelerator.reduce(values, "sum").tolist(), strict=True))
    right, decided = summed.pop("right"), summed.pop("decided")
    return {**summed, "accuracy": right / decided if decided else math.nan}
