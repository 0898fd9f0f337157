"""How the axes of a latent reward read the features of its trunk, and what each member of an ensemble has of its own.

Keys and values, or pooled features, cost in proportion to the number of features; a few queries and their updates cost
next to nothing. The members of an ensemble share the former, so that several cost about as much as one.

References:
    [1] Osband et al., 2016, arXiv:1602.04621 (bootstrapped heads on one trunk).
    [2] Shazeer, 2019, arXiv:1911.02150 (keys and values shared between queries).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

POOLINGS = ("query", "mean", "max")


class EncodedPrompt(NamedTuple):
    """A prompt as the reward encodes it, independent of any latents; a single row serves every sample.

    Args:
        context: What the trunk attends to as the prompt, shape ``(B, M, D)``.
        queries: Of the axes, member by member, shape ``(B, M * A, D)``.
        words: Features of the words, shape ``(B, L, D)``; ``None`` if the queries have attended to them already.
        mask: Which of the words count, shape ``(B, L)``.
    """

    context: Tensor
    queries: Tensor
    words: Tensor | None = None
    mask: Tensor | None = None


class Attention(nn.Module):
    """Attention to features, in whichever order of the same products is the cheaper.

    A few queries go through the weights of the keys to the features, and what they read through those of the values.
    Many queries meet features that were projected to keys and values.

    Args:
        dim: Width of the features.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        linear = nn.Linear(dim, 2 * dim)
        self.weight, self.bias = linear.weight, linear.bias  # of the keys, then of the values

    def forward(self, query: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend to features.

        Args:
            query: Shape ``(B, heads, A, D / heads)``.
            features: Shape ``(B, N, D)``.
            mask: Which features may be attended to, shape ``(B, N)``; all by default.

        Returns:
            The attended values, shape of ``query``.
        """
        few = query.shape[1] * query.shape[2] <= features.shape[-1]
        return (self._by_few if few else self._by_many)(query, features, mask)

    def _by_few(self, query: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        to_key, to_value = self.weight.unflatten(0, (2, self.heads, -1)).unbind()  # (heads, D / heads, D) each
        scale = query.shape[-1] ** -0.5
        folded = (query * scale @ to_key).flatten(1, 2)  # (B, heads * A, D); the keys' bias shifts all logits alike
        logits = folded @ features.mT  # (B, heads * A, N)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], -torch.inf)
        shares = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(features.dtype)
        read = (shares @ features).unflatten(1, (self.heads, -1))  # (B, heads, A, D)
        bias = self.bias.chunk(2)[1].unflatten(0, (self.heads, 1, -1))
        values: Tensor = read @ to_value.mT + bias
        return values

    def _by_many(self, query: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
        both = functional.linear(features, self.weight, self.bias).unflatten(-1, (2, self.heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads) each
        bias = None if mask is None else mask[:, None, None]
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class QueryRead(nn.Module):
    """A cross-attention block: queries attend to features, then an MLP updates each (pre-norm, residual).

    Args:
        dim: Width of queries and features.
        heads: Of the attention.
        keys: Whether it has keys and values of its own; without, it is given those of another.
    """

    def __init__(self, dim: int, heads: int, keys: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = Attention(dim, heads) if keys else None
        self.to_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update queries ``(B, A, D)`` from features ``(B, N, D)``, those where ``mask`` ``(B, N)`` is True."""
        return self.update(queries, *self.attend([self.query(queries)], features, mask))

    def query(self, queries: Tensor) -> Tensor:
        """Project queries ``(B, A, D)`` to those of each head, ``(B, heads, A, D / heads)``."""
        return self._split(self.to_q(self.norm(queries)))

    def attend(self, projected: Sequence[Tensor], features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Attend to features with the projected queries of each member, in one attention."""
        assert self.to_kv is not None  # only the first member has keys and values
        values: Tensor = self.to_kv(torch.cat(list(projected), dim=2), features, mask)
        return values.chunk(len(projected), dim=2)

    def update(self, queries: Tensor, values: Tensor) -> Tensor:
        """Update queries ``(B, A, D)`` from the attended values of each head."""
        queries = queries + self.to_out(values.transpose(1, 2).flatten(2))
        updated: Tensor = queries + self.mlp(queries)
        return updated

    def _split(self, tokens: Tensor) -> Tensor:
        split: Tensor = tokens.unflatten(-1, (self.heads, -1))
        return split.transpose(1, 2)


class PooledRead(nn.Module):
    """The same without attention: every query gets the mean or the maximum of the features."""

    def __init__(self, dim: int, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.to_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Update queries ``(B, A, D)`` from features ``(B, N, D)``."""
        return self.update(queries, *self.attend([self.query(queries)], features))

    def query(self, queries: Tensor) -> Tensor:
        """Return the queries: every one gets the same features."""
        return queries

    def attend(self, projected: Sequence[Tensor], features: Tensor) -> tuple[Tensor, ...]:
        """Pool the features to ``(B, D)``, for each member."""
        pooled = features.mean(dim=1) if self.pooling == "mean" else features.amax(dim=1)
        return (pooled,) * len(projected)

    def update(self, queries: Tensor, values: Tensor) -> Tensor:
        """Update queries ``(B, A, D)`` from pooled features ``(B, D)``."""
        queries = queries + self.to_out(values)[:, None]
        updated: Tensor = queries + self.mlp(queries)
        return updated


def new_reads(count: int, dim: int, heads: int, pooling: str, keys: bool = True) -> nn.ModuleList:
    """Return ``count`` reads of one kind; ``keys`` as in `QueryRead`."""
    return nn.ModuleList(
        QueryRead(dim, heads, keys) if pooling == "query" else PooledRead(dim, pooling) for _ in range(count)
    )


def new_queries(count: int, dim: int) -> nn.Parameter:
    """Return ``count`` queries, shape ``(1, count, dim)``."""
    return nn.Parameter(torch.randn(1, count, dim) / dim**0.5)


def new_heads(count: int, dim: int) -> nn.ModuleList:
    """Return what turns each of ``count`` read queries into one number."""
    return nn.ModuleList(
        nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)) for _ in range(count)
    )


class Member(nn.Module):
    """A further member of an ensemble: queries, reads and heads of its own on the keys and values of the first [1, 2].

    Args:
        axes: How many numbers it gives.
        queries: How many queries it has: one per axis, or one for all.
        reads, dim, heads, pooling: As in `new_reads`.
    """

    def __init__(self, axes: int, queries: int, reads: int, dim: int, heads: int, pooling: str) -> None:
        super().__init__()
        self.queries = new_queries(queries, dim)
        self.reads = new_reads(reads, dim, heads, pooling, keys=False)
        self.heads = new_heads(axes, dim)


def member_rewards(members: Sequence[Any], queries: Sequence[Tensor], features: Tensor) -> list[Tensor]:
    """Return the raw reward ``(B, axes)`` of each member.

    Args:
        members: Each has ``reads`` and ``heads``; the first has the keys and values for all.
        queries: Those of each member, after those of the text axes have attended to the prompt, each
            ``(B, queries, D)``.
        features: Shape ``(B, N, D)``.
    """
    for reads in zip(*(member.reads for member in members), strict=True):
        projected = [read.query(own) for read, own in zip(reads, queries, strict=True)]
        attended = reads[0].attend(projected, features)
        queries = [read.update(own, values) for read, own, values in zip(reads, queries, attended, strict=True)]
    return [_raw(member.heads, own) for member, own in zip(members, queries, strict=True)]


def _raw(heads: nn.ModuleList, queries: Tensor) -> Tensor:
    queries = queries.expand(-1, len(heads), -1)  # a shared query serves every axis
    return torch.cat([head(query) for head, query in zip(heads, queries.unbind(1), strict=True)], dim=1).float()
