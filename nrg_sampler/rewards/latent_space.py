"""Whose latents a reward was trained on, which pipelines have the same, and how a VAE's are normalised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What of a VAE's config tells its latents from those of another VAE.
LATENT_OPTIONS = (
    "z_dim",
    "latent_channels",
    "latents_mean",
    "latents_std",
    "scaling_factor",
    "shift_factor",
    "scale_factor_spatial",
    "scale_factor_temporal",
)


def latent_space(vae: Any) -> dict[str, Any]:
    """Describe the latents of a VAE: its class, and what of its config shapes or normalises them."""
    config = {name: vae.config[name] for name in LATENT_OPTIONS if vae.config.get(name) is not None}
    return {"vae": type(vae).__name__, **config}


def check_latent_space(pipe: Any, config: Mapping[str, Any]) -> None:
    """Refuse a pipeline with other latents or another text encoder than a reward was trained on.

    Args:
        pipe: The pipeline.
        config: Of the reward, with ``in_channels``, ``text_dim`` and ``latent_space``.

    Raises:
        ValueError: If channels, text width or the VAE's kind or normalisation differ.
    """
    transformer = getattr(pipe, "transformer", None) or getattr(pipe, "transformer_2", None)
    own = getattr(transformer, "config", None)
    for name, meaning in (("in_channels", "latent channels"), ("text_dim", "numbers per prompt token")):
        theirs = getattr(own, name, None)
        if theirs is not None and theirs != config[name]:
            raise ValueError(
                f"Expected a pipeline with {config[name]} {meaning}, as this reward was trained on, but "
                f"{type(pipe).__name__} has {theirs}; use a reward that was trained for this pipeline's latents."
            )
    vae, trained_on = getattr(pipe, "vae", None), config["latent_space"]
    if vae is None or trained_on is None:
        return
    space = latent_space(vae)
    for name, value in trained_on.items():
        if not _same(value, space.get(name)):
            raise ValueError(
                f"Expected a VAE with `{name}` {value}, as this reward was trained on, but that of "
                f"{type(pipe).__name__} has {space.get(name)}; use a reward that was trained for this VAE."
            )


def _same(value: Any, other: Any) -> bool:
    """Compare settings that went through JSON, where a tuple became a list and a float may have been rounded."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        same_length = isinstance(other, Sequence) and len(value) == len(other)
        return same_length and all(_same(a, b) for a, b in zip(value, other, strict=True))
    if isinstance(value, float) and isinstance(other, (int, float)):
        return math.isclose(value, other, rel_tol=1e-5, abs_tol=1e-6)
    return bool(value == other)


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Shift and scale what a VAE encoded, shape ``(B, C, ...)``, as its pipeline has latents.

    By statistics per channel (Wan), by one factor and shift (FLUX), or by statistics and a factor (LTX).
    """
    mean, deviation = _statistics(vae, latents)
    return (latents - mean) / deviation


def denormalised(vae: Any, latents: Tensor) -> Tensor:
    """Undo :func:`normalised`: latents of a pipeline, shape ``(B, C, ...)``, as the VAE decodes them."""
    mean, deviation = _statistics(vae, latents)
    return latents * deviation + mean


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a VAE's latents, broadcastable to ``like``."""
    config = vae.config
    factor = getattr(config, "scaling_factor", None) or 1.0
    found = [getattr(config, name, None) for name in ("latents_mean", "latents_std")]
    if any(values is None for values in found):  # LTX keeps them beside its weights
        stored = dict(vae.named_buffers(recurse=False))
        found = [stored.get("latents_mean"), stored.get("latents_std")]
    if any(values is None for values in found):
        return like.new_tensor(getattr(config, "shift_factor", None) or 0.0), like.new_tensor(1 / factor)
    shape = (1, -1, *[1] * (like.ndim - 2))
    mean, deviation = (torch.as_tensor(values).to(like).view(shape) for values in found)
    return mean, deviation / factor
