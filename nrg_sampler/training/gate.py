"""Train a gate that proposes weights from the prompt, on the deficits of unguided samples. It takes seconds."""

from __future__ import annotations

import torch
from torch import Tensor

from nrg_sampler.rewards.gate import WeightGate, standardised

ATTAINABLE = 0.95  # quantile of a score over all samples


def deficits(scores: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Measure how far the mean sample of each prompt is below what is attainable, in standard deviations of the axis.

    What is attainable is the ``ATTAINABLE`` quantile over all samples of all prompts.

    Args:
        scores: Of unguided samples, shape ``(N, axes)``.
        group: Which prompt each belongs to, shape ``(N,)``.

    Returns:
        Deficits of at least 0, shape ``(prompts, axes)``, and the prompts in their order, shape ``(prompts,)``.
    """
    names, place = group.unique(return_inverse=True)
    counts = torch.zeros(len(names)).index_add_(0, place, torch.ones(len(place)))
    means = torch.zeros(len(names), scores.shape[1]).index_add_(0, place, scores.float()) / counts[:, None]
    attainable = scores.float().quantile(ATTAINABLE, dim=0)
    return ((attainable - means) / scores.float().std(dim=0).clamp(min=1e-6)).clamp(min=0), names


def train_gate(
    pooled: Tensor, targets: Tensor, steps: int = 150, lr: float = 3e-3, weight_decay: float = 0.3, seed: int = 0
) -> WeightGate:
    """Fit a gate to the deficits of prompts, by squared error.

    Args:
        pooled: Prompts as `rewards.gate.pool_prompts` gives them, shape ``(prompts, text_dim)``.
        targets: Their deficits, shape ``(prompts, axes)``.
        steps: Of AdamW, each on all prompts.
        lr: Its learning rate.
        weight_decay: Its weight decay; high, for the deficits of a few samples are noisy.
        seed: Of the initial weights.

    Raises:
        ValueError: If the numbers of prompts differ.
    """
    if len(pooled) != len(targets):
        raise ValueError(f"Expected the deficits of {len(pooled)} prompts, but got {len(targets)}; give one row each.")
    torch.manual_seed(seed)
    gate = WeightGate(pooled.shape[1], targets.shape[1])
    mean, std = pooled.mean(dim=0), pooled.std(dim=0).clamp(min=1e-4)
    inputs = (pooled - mean) / std
    optimizer = torch.optim.AdamW(gate.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        (gate(inputs) - targets).square().mean().backward()
        optimizer.step()
    standardised(gate, mean, std)
    return gate.requires_grad_(False).eval()
