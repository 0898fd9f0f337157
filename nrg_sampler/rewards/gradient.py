"""The gradient of a reward with respect to noisy latents, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.flow import per_sample, working_dtype
from nrg_sampler.rewards.base import Conditioning, Reward, RewardWeights, WeightsLike, normalised
from nrg_sampler.rewards.ensemble import lower_bound, member_count


def weighted_score(reward: Reward, raw: Tensor, weights: WeightsLike = None, calibrated: bool = True) -> Tensor:
    """Return the weighted sum of a raw reward.

    Args:
        reward: The reward that gave ``raw``.
        raw: Raw reward, shape ``(B, axes)``.
        weights: One weight per axis; 1 for each by default.
        calibrated: Use the axes in units of their stored standard deviation rather than raw.

    Returns:
        The score, shape ``(B,)``.
    """
    values = normalised(reward, raw) if calibrated else raw
    resolved = RewardWeights.parse(weights).resolve(reward.axes)
    terms = [weight * column for weight, column in zip(resolved, values.unbind(-1), strict=True)]
    return torch.stack(terms).sum(dim=0)


def reward_gradient(
    latents: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None = None,
    weights: WeightsLike = None,
    calibrated: bool = True,
    disagreement: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Differentiate the weighted reward with respect to the latents, each sample on its own.

    Works inside ``torch.no_grad`` and ``torch.inference_mode``, computes in float32 (float64 for float64 latents) and
    leaves no ``.grad`` behind.

    Args:
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        sigma: Noise level, 1 is pure noise: a number, or shape ``(B,)``.
        reward: The reward; must treat the samples of a batch independently.
        conditioning: The positive prompts, one row per latent.
        weights: One weight per axis; 1 for each by default.
        calibrated: Differentiate the axes in units of their stored standard deviation rather than raw.
        disagreement: Differentiate the lower confidence bound over the reward's members with this multiple of their
            standard deviation; 0 their mean.

    Returns:
        The gradient, shape of ``latents``, and the raw reward, shape ``(B, axes)``.

    Raises:
        ValueError: If the reward has another output shape, gives no gradient or is on another device.
    """

    def score(raw: Tensor) -> list[Tensor]:
        return [weighted_score(reward, raw, weights, calibrated)]

    grads, raw = _differentiate(latents, sigma, reward, conditioning, score, disagreement)
    return grads[0], raw


def axis_gradients(
    latents: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None = None,
    axes: Sequence[str] | None = None,
    calibrated: bool = True,
    disagreement: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Differentiate single axes: one pass forward and one back for each; otherwise as ``reward_gradient``.

    Args:
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        sigma: Noise level, 1 is pure noise: a number, or shape ``(B,)``.
        reward: The reward; must treat the samples of a batch independently.
        conditioning: The positive prompts, one row per latent.
        axes: Which axes, in which order; all of the reward's by default.
        calibrated: Differentiate the axes in units of their stored standard deviation rather than raw.
        disagreement: Differentiate the lower confidence bound over the reward's members with this multiple of their
            standard deviation; 0 their mean.

    Returns:
        The gradients without any weight, shape ``(len(axes), B, C, T, H, W)``, and the raw reward of all axes, shape
        ``(B, axes of the reward)``.

    Raises:
        ValueError: As ``reward_gradient``.
    """
    columns = [reward.axes.index(axis) for axis in (reward.axes if axes is None else axes)]

    def scores(raw: Tensor) -> list[Tensor]:
        values = normalised(reward, raw) if calibrated else raw
        return [values[:, column] for column in columns]

    return _differentiate(latents, sigma, reward, conditioning, scores, disagreement)


def _differentiate(
    latents: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None,
    scores: Callable[[Tensor], list[Tensor]],
    disagreement: float,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each score ``(B,)`` that ``scores`` makes of the raw reward, stacked, and that reward."""
    _check_device(reward, latents.device)
    options = {"members": True} if disagreement else {}
    with torch.inference_mode(False), torch.enable_grad():
        # Cloned in here, because tensors made in inference mode can take no part in autograd.
        given = (conditioning or Conditioning()).copied(latents.device)
        dtype = working_dtype(latents)
        if hasattr(reward, "evaluate"):  # the denoiser has gone part of the way already
            leaf, said = reward.evaluate(latents, given, **options)
        else:
            leaf = latents.detach().clone().to(dtype).requires_grad_()
            score: Any = reward
            said = score(leaf, per_sample(sigma, leaf).clone(), given, **options)
        _check_output(said, leaf, reward, **options)
        raw = said.mean(dim=1) if disagreement else said
        wanted = scores(lower_bound(said.to(dtype), disagreement) if disagreement else raw.to(dtype))
        grads = []
        for index, score in enumerate(wanted):
            again = index + 1 < len(wanted)
            (grad,) = torch.autograd.grad(score.sum(), leaf, retain_graph=again, allow_unused=True)
            grads.append(torch.zeros_like(leaf, dtype=dtype) if grad is None else grad.to(dtype))
    return torch.stack(grads), raw.detach()


def _check_device(reward: Any, device: torch.device) -> None:
    if not isinstance(reward, torch.nn.Module) or hasattr(reward, "_hf_hook"):  # offloading moves it on its own
        return
    parameter = next(reward.parameters(), None)
    if parameter is not None and parameter.device != device:
        raise ValueError(
            f"Expected the reward on the latents' device {device}, but it is on {parameter.device}; "
            f"move it with `reward.to('{device}')`."
        )


def _check_output(raw: Any, latents: Tensor, reward: Reward, members: bool = False) -> None:
    expected = (latents.shape[0], *([member_count(reward)] if members else []), len(reward.axes))
    if not isinstance(raw, Tensor) or raw.shape != expected:
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(
            f"Expected the reward to return a tensor of shape {expected}, one column per axis "
            f"({', '.join(reward.axes)}), but got {got}; return one row per sample."
        )
    if not raw.requires_grad:
        raise ValueError(
            "Expected a reward that is differentiable with respect to the latents, but its output carries no gradient; "
            "compute it without `detach`, `no_grad` or `item`."
        )
