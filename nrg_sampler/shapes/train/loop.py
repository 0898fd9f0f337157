"""One resumable training loop for every bundled model: a generator that yields the numbers of each step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nrg_sampler.checkpoints import first_line
from nrg_sampler.files import replacing
from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.training.schedule import warmup_cosine
from nrg_sampler.training.step_log import StepLog

LOGGED = 50  # every so many steps are logged

LossFunction = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a training run.

    Args:
        steps: Optimiser steps in all.
        warmup: Steps over which the learning rate rises from 0; then it falls to 0 along a cosine.
        hold: Share of the steps before the rate begins to fall. Until then a run may be made longer or shorter: where
            a stage takes days, how long it has to learn is seen from its curve.
        ema: Decay of the exponential moving average of the weights, reached after a warm-up of its own.
        clip: Largest gradient norm.
        seed: Step ``n`` draws all its randomness from ``(seed, n)``, so a resumed run sees the same data.
        save_every: Seconds between checkpoints.
        about: What else decides the weights, such as the batch and digests of the data; a resumed run has to share it.
    """

    steps: int
    warmup: int = 100
    hold: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every: float = 180.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 1:
            raise ValueError(f"Expected `steps` to be at least 1, but got {self.steps}.")
        if not 0 <= self.hold < 1:
            raise ValueError(f"Expected `hold` to be a share in [0, 1), but got {self.hold}.")

    @property
    def identity(self) -> dict[str, str]:
        """What a resumed run must share with its checkpoint, by name."""
        own = {name: value for name, value in vars(self).items() if name not in ("save_every", "about")}
        return {name: str(value) for name, value in {**own, **self.about}.items()}

    def rate(self, step: int) -> float:
        """Return the learning-rate factor at a step, in ``[0, 1]``."""
        held = self.hold * self.steps
        if self.warmup <= step < held:
            return 1.0
        falls_from = self.warmup if step < self.warmup else max(self.warmup, int(held))
        return warmup_cosine(step, falls_from, self.steps, first=1)


def fit(
    model: nn.Module,
    loss: LossFunction,
    optimizers: Sequence[Optimizer],
    settings: LoopSettings,
    checkpoint: Path,
) -> Iterator[dict[str, float]]:
    """Train ``model`` in place, from the last checkpoint if there is one; at the end it holds the averaged weights.

    Args:
        model: The module whose parameters the optimisers hold.
        loss: ``(step, generator) -> (scalar loss, numbers to report)``.
        optimizers: Each keeps its own base learning rate.
        settings: See :class:`LoopSettings`.
        checkpoint: File to save to, every few minutes and at the end; written beside and renamed, never half. Every
            fiftieth step is logged to a ``.jsonl`` of the same name.

    Yields:
        ``{"step", "loss", "seconds", ...}`` after each step.

    Raises:
        ValueError: If the checkpoint is of other settings or data, or damaged.
        RunFailedError: If the loss is not finite.
    """
    average = copy.deepcopy(model).requires_grad_(False)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, saved_at, log = 0, time.monotonic(), StepLog(checkpoint.with_suffix(".jsonl"))
    if checkpoint.exists():
        state = _read(checkpoint)
        stored = dict(state.get("identity", {}))
        if state["step"] <= settings.hold * min(settings.steps, int(stored.get("steps", 0))):
            stored["steps"] = str(settings.steps)  # neither run's rate has begun to fall, so both are the same so far
        _require_same(stored, settings.identity, checkpoint)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, kept_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept_state)
        step = state["step"]
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "identity": settings.identity,
        }
        with replacing(checkpoint) as partial:
            torch.save(state, partial)

    model.train()
    while step < settings.steps:
        started = time.monotonic()
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        torch.manual_seed(settings.seed * 1_000_003 + step)
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * settings.rate(step)
            optimizer.zero_grad(set_to_none=True)
        value, numbers = loss(step, generator)
        if not torch.isfinite(value):
            last = f"the last good checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
            raise RunFailedError(f"Expected a finite loss, but at step {step + 1} it is {value.item():g}; {last}.")
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        if torch.isfinite(norm):
            for optimizer in optimizers:
                optimizer.step()
        step += 1
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
            for stored_buffer, buffer in zip(average.buffers(), model.buffers(), strict=True):
                stored_buffer.copy_(buffer)
        numbers = {"step": step, "loss": value.item(), "grad_norm": norm.item(), **numbers}
        numbers["seconds"] = time.monotonic() - started
        if step % LOGGED == 0:
            log.write(numbers)
        yield numbers
        if time.monotonic() - saved_at > settings.save_every:
            save()
            saved_at = time.monotonic()
    save()
    model.load_state_dict(average.state_dict())
    model.eval()


def _read(checkpoint: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        missing = [name for name in ("model", "average", "optimizers", "step") if name not in state]
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ValueError(
            f"Expected a whole checkpoint in {checkpoint}, but it cannot be read ({first_line(error)}); copy it "
            "again, or remove it to begin anew."
        ) from error
    if missing:
        raise ValueError(
            f"Expected a checkpoint of a stage in {checkpoint}, but it lacks {', '.join(missing)}; copy it again, or "
            "remove it to begin anew."
        )
    return state


def _require_same(stored: Mapping[str, str], identity: Mapping[str, str], checkpoint: Path) -> None:
    """Refuse a checkpoint of another run; those of 0.1.0 say nothing of theirs."""
    differing = [key for key in identity if stored.get(key, identity[key]) != identity[key]]
    if differing:
        changes = ", ".join(f"{key} {stored[key]} (now {identity[key]})" for key in differing)
        raise ValueError(
            f"Expected a run that trains the same as {checkpoint}, but these differ: {changes}; repeat what they "
            "were, or name another folder."
        )
