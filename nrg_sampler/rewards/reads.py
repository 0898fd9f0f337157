"""How the axes of a latent reward read the features of its trunk."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

POOLINGS = ("query", "mean", "max")


class QueryRead(nn.Module):
    """One read: queries attend to features and then think for themselves (pre-norm, residual)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_kv = nn.Linear(dim, 2 * dim)
        self.to_out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Update queries ``(B, A, D)`` from features ``(B, N, D)``; where ``mask`` ``(B, N)`` is False is not read."""
        query = self._split(self.to_q(self.norm(queries)))
        key, value = (self._split(part) for part in self.to_kv(features).chunk(2, dim=-1))
        bias = None if mask is None else mask[:, None, None]
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # (B, heads, A, D / heads)
        queries = queries + self.to_out(read.transpose(1, 2).flatten(2))
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
        pooled = features.mean(dim=1) if self.pooling == "mean" else features.amax(dim=1)
        queries = queries + self.to_out(pooled)[:, None]
        updated: Tensor = queries + self.mlp(queries)
        return updated


def new_reads(count: int, dim: int, heads: int, pooling: str) -> nn.ModuleList:
    """Return ``count`` reads of one kind."""
    return nn.ModuleList(
        QueryRead(dim, heads) if pooling == "query" else PooledRead(dim, pooling) for _ in range(count)
    )
