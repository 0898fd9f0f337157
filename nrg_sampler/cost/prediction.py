"""Predict by a formula what guidance costs, from the weights of a transformer's blocks alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

# Weights of a block that do not act on every latent token: modulation from the timestep, the prompt's own stream, and
# what turns the prompt into keys and values.
NOT_PER_TOKEN = ("norm", "context", "add_", "attn2.to_k", "attn2.to_v")


def blocks_of(transformer: Any) -> list[nn.Module]:
    """Return the blocks of a diffusers transformer, in the order they run."""
    names = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in names for block in getattr(transformer, name, ())]


@dataclass(frozen=True)
class BlockCost:
    """Multiplications and additions of one block's forward pass.

    Args:
        linear: In layers that act on every token.
        attention: In products of queries, keys and values.
    """

    linear: float
    attention: float

    @property
    def forward(self) -> float:
        """Of a forward pass."""
        return self.linear + self.attention

    @property
    def backward(self) -> float:
        """Of a backward pass to the input alone, a frozen layer once, attention five products instead of two."""
        return self.linear + 2.5 * self.attention


def block_costs(transformer: Any, tokens: int) -> list[BlockCost]:
    """Estimate each block of ``transformer`` from its weights and the number of latent tokens."""
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    return [
        BlockCost(2.0 * tokens * _weights_per_token(block), 4.0 * tokens**2 * width)
        for block in blocks_of(transformer)
    ]


def predicted_ratio(
    costs: list[BlockCost],
    num_blocks: int,
    evaluations: int,
    passes_back: int = 1,
    *,
    read: list[BlockCost] | None = None,
    shared: bool = False,
    checkpointing: bool = False,
) -> float:
    r"""Predict the cost of a guided step over that of an unguided one.

    .. math:: K = 1 + f\,(1 + b) / E

    with ``f`` the reward's share of the forward pass, ``b`` the cost of its backward pass over its forward one and
    ``E`` evaluations a step. Features that are shared save the forward pass; checkpointing pays for its linear layers
    once more, and axes that are differentiated one by one for several backward passes. ``read`` are the costs of the
    blocks with as many tokens as the reward reads; all of them by default.
    """
    trunk = (costs if read is None else read)[:num_blocks]
    forward = sum(cost.forward for cost in trunk)
    backward = sum(cost.backward for cost in trunk)
    again = sum(cost.linear for cost in trunk) if checkpointing else 0.0
    extra = passes_back * backward + again + forward * (not shared)
    return 1 + extra / (evaluations * sum(cost.forward for cost in costs))


def _weights_per_token(block: nn.Module) -> int:
    return sum(
        weight.numel()
        for name, weight in block.named_parameters()
        if weight.ndim == 2 and not any(part in name for part in NOT_PER_TOKEN)
    )
