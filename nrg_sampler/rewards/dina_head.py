"""The head of the published DiNa-LRM: a few learned queries read the features of several blocks.

Parameters have the names of the published checkpoint.

Reference:
    DiNa-LRM, arXiv:2602.11146.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeatureAdapter(nn.Module):
    """Features of one block, scaled and shifted by the noise level and made narrower."""

    def __init__(self, dim: int, time_dim: int, width: int, out: int, project: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, width) if project or dim != width else nn.Identity()
        self.layer_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.cond_mlp = nn.Sequential(nn.Linear(time_dim, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.proj = nn.Linear(width, out)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Features ``(B, N, D)`` and the embedded noise level ``(B, E)`` to ``(B, N, out)``."""
        scale, shift = self.cond_mlp(time)[:, None].chunk(2, dim=-1)  # (B, 1, W) each
        adapted: Tensor = self.proj(self.proj_in(features) * (1 + scale) + shift + self.layer_embed)
        return adapted


class GatedRead(nn.Module):
    """Queries read picture and, if there is any, text, each by an attention of its own; values may be gated."""

    def __init__(self, dim: int, heads: int, text: bool, gated: bool) -> None:
        super().__init__()
        self._heads, kinds = heads, ("vis", "text") if text else ("vis",)
        self.norm_q, self.norm_v = nn.RMSNorm(dim), nn.RMSNorm(dim)
        if text:
            self.norm_t = nn.RMSNorm(dim)
        self.to_q = nn.Linear(dim, dim)
        self.to_out = nn.Sequential(nn.Linear(dim, dim))
        for kind in kinds:
            setattr(self, f"to_k_{kind}", nn.Linear(dim, dim))
            setattr(self, f"to_v_{kind}", nn.Linear(dim, dim))
            if gated:
                setattr(self, f"gate_{kind}", nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1)))

    def forward(self, queries: Tensor, picture: Tensor, text: Tensor | None = None) -> Tensor:
        """Update queries ``(B, Q, D)`` from tokens ``(B, N, D)`` and ``(B, L, D)``."""
        query = self.to_q(self.norm_q(queries))
        read = self._read("vis", query, self.norm_v(picture))
        if text is not None:
            read = read + self._read("text", query, self.norm_t(text))
        updated: Tensor = queries + self.to_out(read)
        return updated

    def _read(self, kind: str, query: Tensor, tokens: Tensor) -> Tensor:
        key, value = getattr(self, f"to_k_{kind}")(tokens), getattr(self, f"to_v_{kind}")(tokens)
        if hasattr(self, f"gate_{kind}"):
            value = value * getattr(self, f"gate_{kind}")(tokens).sigmoid()
        split = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in (query, key, value))
        return functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class DiNaHead(nn.Module):
    """Read one number off the features of several blocks.

    Args:
        dim: Width of the trunk.
        pictures: How many blocks' picture features are read.
        texts: How many blocks' text features are read.
        settings: ``reward_head`` of the published config.
    """

    def __init__(self, dim: int, pictures: int, texts: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        width = dim if settings.get("width", -1) == -1 else int(settings["width"])
        heads, project = int(settings.get("num_attn_heads", 8)), bool(settings.get("use_proj_in", False))
        for name, count in (("visual", pictures), ("text", texts)):
            adapters = [FeatureAdapter(dim, dim, width, width // 4, project) for _ in range(count)]
            setattr(self, f"layer_adapters_{name}", nn.ModuleList(adapters))
            if count:
                setattr(self, f"agg_{name}", nn.Linear(count * (width // 4), width))
        self.query_tokens = nn.Parameter(torch.zeros(1, int(settings.get("num_queries", 4)), width))
        self.attn1 = GatedRead(width, heads, text=texts > 0, gated=True)
        self.attn2 = GatedRead(width, heads, text=False, gated=False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, int(settings.get("out_dim", 1)))

    def forward(self, pictures: Sequence[Tensor], texts: Sequence[Tensor], time: Tensor) -> Tensor:
        """Score features ``(B, N, D)`` and ``(B, L, D)`` of each block at a noise level ``(B, E)``; ``(B, out)``."""
        picture = self._joined("visual", pictures, time)
        text = self._joined("text", texts, time) if texts else None
        queries = self.attn1(self.query_tokens.expand(len(time), -1, -1), picture, text)
        queries = self.attn2(queries, picture)
        queries = queries + self.ff(self.norm_ff(queries))
        score: Tensor = self.head(queries).mean(dim=1)
        return score

    def _joined(self, kind: str, features: Sequence[Tensor], time: Tensor) -> Tensor:
        adapters = getattr(self, f"layer_adapters_{kind}")
        adapted = [adapter(part, time) for adapter, part in zip(adapters, features, strict=True)]
        joined: Tensor = getattr(self, f"agg_{kind}")(torch.cat(adapted, dim=-1))
        return joined
