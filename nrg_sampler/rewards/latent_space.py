"""Whose latents a reward was trained on, and which pipelines have the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
