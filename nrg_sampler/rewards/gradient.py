"""The gradient of a reward with respect to noisy latents, whatever mode the caller is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nrg_sampler.flow import per_sample, working_dtype
from nrg_sampler.rewards.base import Conditioning, Reward, RewardHooks, SharedForward, normalised
from nrg_sampler.rewards.ensemble import lower_bound
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike

SampleWeights: TypeAlias = WeightsLike | Mapping[str, float | Tensor]


def weighted_score(reward: Reward, raw: Tensor, weights: SampleWeights = None, calibrated: bool = True) -> Tensor:
    """Return the weighted sum of a raw reward.

    Args:
        reward: The reward that gave ``raw``.
        raw: Raw reward, shape ``(B, axes)``.
        weights: One weight per axis; 1 for each by default. In a mapping they may be tensors with one for each sample.
        calibrated: Use the axes in units of their stored standard deviation rather than raw.

    Returns:
        The score, shape ``(B,)``.
    """
    values = normalised(reward, raw) if calibrated else raw
    columns = zip(_by_axis(weights, reward.axes), values.unbind(-1), strict=True)
    return torch.stack([weight * column for weight, column in columns]).sum(dim=0)


def _by_axis(weights: SampleWeights, axes: Sequence[str]) -> Sequence[Any]:
    """A number for each axis, or one for each sample, ``(B,)``."""
    if isinstance(weights, Mapping) and any(isinstance(weight, Tensor) for weight in weights.values()):
        return [weights.get(axis, 0.0) for axis in axes]
    return RewardWeights.parse(weights).resolve(axes)


def reward_gradient(
    latents: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None = None,
    weights: SampleWeights = None,
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
        weights: One weight per axis; 1 for each by default. In a mapping they may be tensors with one for each sample.
        calibrated: Differentiate the axes in units of their stored standard deviation rather than raw.
        disagreement: Differentiate the lower confidence bound over the reward's members with this multiple of their
            standard deviation; 0 their mean.

    Returns:
        The gradient, shape of ``latents``, and the raw reward, shape ``(B, axes)``.

    Raises:
        ValueError: If the reward has another output shape, gives no gradient or is on another device.
    """
    shares = _in_units(_by_axis(weights, reward.axes), reward, calibrated)
    grads, raw = _differentiate(latents, sigma, reward, conditioning, [shares], disagreement)
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
    single = [[float(own == axis) for own in reward.axes] for axis in (reward.axes if axes is None else axes)]
    shares = [_in_units(row, reward, calibrated) for row in single]
    grads, raw = _differentiate(latents, sigma, reward, conditioning, shares, disagreement)
    return torch.stack(grads), raw


def prepared(reward: Any, conditioning: Conditioning, device: torch.device) -> Conditioning:
    """Let a reward with ``prepare`` work out of the prompts, once for all steps of a run, what it needs in each.

    Args:
        reward: Any reward.
        conditioning: The positive prompts, one row per latent.
        device: That of the latents.

    Returns:
        The conditioning for every step with these prompts.

    Raises:
        ValueError: If the prompts do not fit the reward.
    """
    prepare = RewardHooks.of(reward).prepare
    if prepare is None:
        return conditioning
    _check_device(reward, device)
    with torch.inference_mode(False):  # autograd takes no tensors made in inference mode
        return prepare(conditioning.copied(device))


def _in_units(shares: Sequence[Any], reward: Reward, calibrated: bool) -> list[Any]:
    """Return the derivative of a weighted score by each raw axis, a number or one for each sample."""
    units = RewardHooks.of(reward).std if calibrated else (1.0,) * len(shares)
    return [share / unit for share, unit in zip(shares, units, strict=True)]


def _differentiate(
    latents: Tensor,
    sigma: Tensor | float,
    reward: Reward,
    conditioning: Conditioning | None,
    sums: Sequence[Sequence[Any]],
    disagreement: float,
) -> tuple[list[Tensor], Tensor]:
    """Return the gradient of each weighted sum of the raw axes, one pass back for each, and the raw reward."""
    _check_device(reward, latents.device)
    options = {"members": True} if disagreement else {}
    with torch.inference_mode(False), torch.enable_grad():
        # Cloned in here, because tensors made in inference mode can take no part in autograd.
        given = (conditioning or Conditioning()).copied(latents.device)
        dtype = working_dtype(latents)
        if isinstance(reward, SharedForward):  # the denoiser has gone part of the way already
            leaf, output = reward.evaluate(latents, given, **options)
        else:
            leaf = latents.detach().clone().to(dtype).requires_grad_()
            score: Any = reward
            with _left_as_it_is(leaf):
                output = score(leaf, per_sample(sigma, leaf).clone(), given, **options)
        _check_output(output, leaf, reward, **options)
        raw = output.mean(dim=1) if disagreement else output
        guiding = lower_bound(output.to(dtype), disagreement) if disagreement else raw.to(dtype)
        grads = []
        for index, shares in enumerate(sums):
            again = index + 1 < len(sums)
            # numbers rather than a tensor of them, whose copy to the device the host would wait for
            slope = torch.stack([share * torch.ones_like(guiding[:, 0]) for share in shares], dim=1)
            (grad,) = torch.autograd.grad(guiding, leaf, slope, retain_graph=again, allow_unused=True)
            grads.append(torch.zeros_like(leaf, dtype=dtype) if grad is None else grad.to(dtype))
    return grads, raw.detach()


@contextmanager
def _left_as_it_is(leaf: Tensor) -> Iterator[None]:
    """Refuse a reward that changes the latents in place; torch does not always, and then the gradient is wrong."""
    refusal = (
        "Expected a reward that leaves the latents as they are, but it changes them in place; write "
        "`latents = latents * 2` rather than `latents *= 2`, or clone them first."
    )
    before = 0 if leaf.is_inference() else leaf._version
    try:
        yield
    except RuntimeError as error:
        if "a leaf Variable that requires grad" in str(error):
            raise ValueError(refusal) from error
        raise
    if not leaf.is_inference() and leaf._version > before:
        raise ValueError(refusal)


def _check_device(reward: Any, device: torch.device) -> None:
    if not isinstance(reward, torch.nn.Module) or hasattr(reward, "_hf_hook"):  # offloading moves it on its own
        return
    if RewardHooks.of(reward).offloaded:
        return
    parameter = next(reward.parameters(), None)
    if parameter is not None and parameter.device != device:
        raise ValueError(
            f"Expected the reward on the latents' device {device}, but it is on {parameter.device}; "
            f"move it with `reward.to('{device}')`."
        )


def _check_output(raw: Any, latents: Tensor, reward: Reward, members: bool = False) -> None:
    expected = (latents.shape[0], *([RewardHooks.of(reward).num_members] if members else []), len(reward.axes))
    if not isinstance(raw, Tensor) or raw.shape != expected:
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(
            f"Expected the reward to return a tensor of shape {expected}, one column per axis "
            f"({', '.join(reward.axes)}), but got {got}; return one row per sample."
        )
    if not raw.requires_grad:
        raise ValueError(
            "Expected a reward that is differentiable with respect to the latents, but its output carries no "
            "gradient; compute it without `detach`, `no_grad` or `item`."
        )
