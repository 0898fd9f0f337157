"""Whether a call of the denoiser was made with the latents and at the time of a step."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.hosts.families import Family
from nrg_sampler.hosts.layouts import Call

SHARE = 0.25  # of the numbers that have to agree: given frames and masks replace some, and chance few
CLOSE = 0.02  # half precision rounds


def saw_latents(call: Call, family: Family, latents: Tensor) -> bool | None:
    """Return whether the denoiser was given these latents, ``None`` where its arguments do not tell.

    Args:
        call: Its arguments by name.
        family: What is particular about the pipeline.
        latents: Those of the step, as the scheduler is given them.
    """
    hidden = call.get("hidden_states")
    if isinstance(hidden, (list, tuple)):
        hidden = torch.stack(list(hidden))
    if not isinstance(hidden, Tensor):
        return None
    if family.denoiser_layout is not None:
        hidden = family.denoiser_layout.views(call, hidden).unpack(hidden)
    if len(hidden) % len(latents):
        return False
    hidden = hidden[: len(latents)]
    if hidden.numel() == latents.numel():
        return _agree(hidden.reshape(latents.shape), latents)
    if hidden.ndim != latents.ndim:
        return None
    if any(theirs < own for theirs, own in zip(hidden.shape, latents.shape, strict=True)):
        return False
    # Conditions are further channels, tokens or frames, behind the latents or before them.
    places = [
        (slice(own), slice(theirs - own, None)) if theirs > own else (slice(None),)
        for theirs, own in zip(hidden.shape, latents.shape, strict=True)
    ]
    return any(_agree(hidden[place], latents) for place in itertools.product(*places))


def saw_timestep(call: Call, timestep: Any) -> bool:
    """Return whether the denoiser was given this timestep, in one of the ways that pipelines state it."""
    given = call.get("timestep")
    if given is None or timestep is None:
        return True
    number, own = float(torch.as_tensor(given).flatten()[-1]), float(torch.as_tensor(timestep).flatten()[-1])
    level = own / 1000
    stated = (own, level, 1 - level, 1000 - own, own / (1 + own))
    return any(abs(number - value) <= 1e-3 * max(1.0, abs(value)) for value in stated)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether a good share of the numbers is the same but for rounding, and for one factor of all."""
    one, other = one.float(), other.float()
    factor = (one / torch.where(other == 0, torch.inf, other)).median().clamp(0, 1)
    return bool(((one - factor * other).abs() <= CLOSE * (factor + one.abs())).float().mean() > SHARE)
