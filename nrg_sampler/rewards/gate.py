r"""A gate that reads the prompt and proposes the weights of the axes.

Where unguided samples fall far below what is attainable, guidance has room to help. The gate predicts that deficit
:math:`\delta_k \ge 0` of each of the K axes from the prompt, in standard deviations of the axis, and weighs

.. math:: w_k = K\,\frac{\delta_k}{\sum_j \delta_j}

so that the weights sum to what those of 1:1:1 do: only the shares are proposed, never the strength.

Reference:
    After MJ-VIDEO, arXiv:2502.01719, section 3 (a gate on the prompt decides how much each aspect counts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.rewards.base import Conditioning, RewardHooks
from nrg_sampler.rewards.weights import RewardWeights

SMALLEST_DEFICIT = 1e-6  # an axis without any deficit still has a share to speak of when none has


class WeightGate(nn.Module):
    """Predict from a prompt how much each axis will lack.

    Args:
        text_dim: Numbers per prompt token.
        axes: Number of axes.
        width: Of the hidden layer.
    """

    def __init__(self, text_dim: int, axes: int, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(text_dim, width), nn.SiLU(), nn.Linear(width, axes))

    def forward(self, pooled: Tensor) -> Tensor:
        """Deficits in standard deviations, at least 0, shape ``(B, axes)``, of pooled prompts ``(B, text_dim)``."""
        return functional.softplus(self.layers(pooled))


def pool_prompts(embeds: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the tokens that count, shape ``(B, text_dim)``.

    Args:
        embeds: Shape ``(B, L, text_dim)``; all-zero tokens are padding.
        mask: 1 where a token counts, shape ``(B, L)``; by default where it is not padding.
    """
    counts = (embeds != 0).any(dim=-1) if mask is None else mask.bool()
    kept = counts[..., None].to(embeds.dtype)
    return (embeds * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)


def shares(deficits: Tensor) -> Tensor:
    """Weights in proportion to ``deficits``, shape ``(B, axes)``, that sum to the number of axes."""
    positive = deficits.clamp(min=0) + SMALLEST_DEFICIT
    return deficits.shape[-1] * positive / positive.sum(dim=-1, keepdim=True)


def propose_weights(reward: Any, conditioning: Conditioning | None) -> Tensor:
    """Let the reward's gate propose the weights of each prompt, to three decimals.

    Args:
        reward: A reward with ``propose(conditioning)``.
        conditioning: The positive prompts.

    Returns:
        Shape ``(B, axes)``.

    Raises:
        ValueError: If the reward has no gate, or there is no prompt.
    """
    propose = require_gate(reward)
    if conditioning is None or conditioning.prompt_embeds is None:
        raise ValueError("Expected a prompt for weights='auto', but got none; give the weights yourself.")
    return propose(conditioning).round(decimals=3)


@torch.no_grad()
def weights_for_prompt(pipe: Any, prompt: str) -> RewardWeights:
    """Let the gate of a pipeline's reward propose the weights of a prompt, before anything is sampled.

    Args:
        pipe: A pipeline with a ``reward_model`` and an ``encode_prompt`` that returns the prompt's tokens first.
        prompt: What the video shows.

    Raises:
        ValueError: If the reward has no gate.
    """
    require_gate(pipe.reward_model)
    embeds = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)[0]
    proposed = propose_weights(pipe.reward_model, Conditioning(embeds, prompts=(prompt,)))[0].tolist()
    return RewardWeights(tuple(round(weight, 3) for weight in proposed))


def require_gate(reward: Any) -> Callable[[Conditioning], Tensor]:
    """Return the ``propose`` of a reward.

    Raises:
        ValueError: If it cannot propose weights.
    """
    hooks = RewardHooks.of(reward)
    if not hooks.has_gate or hooks.propose is None:
        raise ValueError(
            f"Expected a reward with a gate for weights='auto', but {type(reward).__name__} has none; give one weight "
            "per axis, or train a gate (`nrg_sampler.training.gate`)."
        )
    return hooks.propose


@torch.no_grad()
def standardised(gate: WeightGate, mean: Tensor, std: Tensor) -> None:
    """Let a gate that was trained on ``(pooled - mean) / std`` take ``pooled`` itself; changes its first layer."""
    first: Any = gate.layers[0]
    first.weight.div_(std)
    first.bias.sub_(first.weight @ mean)
