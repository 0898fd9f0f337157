"""What turns the features of a video into one number, in the form that a checkpoint's keys tell.

The code of the published head was not at hand. Two forms are known by their keys, those of the same authors' other
rewards: the mean over the video's tokens, or what learned queries attend to, and linear layers behind it.

References:
    [1] github.com/lian700/SoliReward, whose queries are ``query`` and whose activation is SiLU.
    [2] github.com/Tencent-Hunyuan/HY-Video-PRFL, whose queries are ``queries`` and whose activation is ReLU.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.checkpoints import first_few

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
}
HEADS = 8  # of the attention, in both references
IN_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
QUERIES = ("query", "queries", "query_tokens")


class LatentPRMHead(nn.Module):
    """Pool the tokens of a video and map them to one number.

    Args:
        widths: Of the linear layers, from that of a token to 1.
        biases: Whether each of them has one.
        queries: How many queries attend to the tokens, whose results are averaged; 0 takes the mean over the tokens.
        heads: Of that attention.
        activation: Between the linear layers, a name of ``ACTIVATIONS``.
    """

    def __init__(
        self, widths: Sequence[int], biases: Sequence[bool], queries: int = 0, heads: int = HEADS, activation: str = ""
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation or "silu"]
        self.queries, self.attention = None, None
        if queries:
            self.queries = nn.Embedding(queries, widths[0])
            self.attention = nn.MultiheadAttention(widths[0], heads, batch_first=True)
        pairs = zip(pairwise(widths), biases, strict=True)
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=bias) for (before, after), bias in pairs)

    def forward(self, tokens: Tensor) -> Tensor:
        """Read tokens ``(B, N, D)``; returns ``(B, 1)``."""
        if self.queries is None or self.attention is None:
            read = tokens.mean(dim=1)
        else:
            queries = self.queries.weight.expand(len(tokens), -1, -1)
            read = self.attention(queries, tokens, tokens, need_weights=False)[0].mean(dim=1)
        for number, layer in enumerate(self.layers):
            read = layer(read if number == 0 else self.activation(read))
        return read


def load_head(state: Mapping[str, Tensor], dim: int, settings: Mapping[str, Any], source: Path) -> LatentPRMHead:
    """Make the head whose weights are in a state dict, each of which has to find its place.

    Args:
        state: What is in a checkpoint besides the trunk.
        dim: Width of a token.
        settings: ``activation`` and ``attention_heads``, which no weight tells.
        source: Of the checkpoint, for messages.

    Raises:
        ValueError: If the keys are those of no known head, or a setting is not supported.

    Warns:
        UserWarning: If the activation is not stated.
    """
    attention, queries, linear = _places(state)
    names = {f"attention.{part}": f"{attention}{part}" for part in IN_ATTENTION if attention is not None}
    if queries is not None:
        names["queries.weight"] = queries
    widths, biases = [dim], []
    for number, place in enumerate(linear):
        names[f"layers.{number}.weight"] = f"{place}.weight"
        widths.append(len(state[f"{place}.weight"]))
        biases.append(f"{place}.bias" in state)
        if biases[-1]:
            names[f"layers.{number}.bias"] = f"{place}.bias"
    shapes = [tuple(state[f"{place}.weight"].shape) for place in linear]
    lacking = [key for key in names.values() if key not in state]
    if (attention is None) != (queries is None):
        lacking.append("the query" if queries is None else "in_proj_weight")
    surplus = [key for key in state if key not in names.values()]
    chained = shapes == [(after, before) for before, after in pairwise(widths)]
    if lacking or surplus or not chained or widths[-1] != 1:
        problem = f"these do not follow on each other: {first_few([*state]) or 'none'}"
        problem = f"it has too many: {first_few(surplus)}" if surplus else problem
        problem = f"it lacks {first_few(lacking)}" if lacking else problem
        raise ValueError(
            f"Expected a head in {source} that pools tokens of {dim} numbers, by a query or not, and maps them to one "
            f"by linear layers, but {problem}; pass the module that reads them as `head`."
        )
    heads = int(settings.get("attention_heads") or HEADS)
    if attention is not None and dim % heads:
        raise ValueError(f"Expected `attention_heads` that divide {dim}, but got {heads}; correct config.json.")
    activation = str(settings.get("activation") or "")
    if activation not in ("", *ACTIVATIONS):
        raise ValueError(f"Expected `activation` from {', '.join(ACTIVATIONS)}, but got {activation!r}; correct it.")
    if not activation and len(linear) > 1:
        warnings.warn(
            f"No file in {source.parent if source.is_file() else source} states the activation of the head, and the "
            "weights do not tell it; SiLU is taken. State it as `activation` in a config.json beside them.",
            stacklevel=2,
        )
    found_queries = None if queries is None else state[queries].reshape(-1, dim)
    head = LatentPRMHead(widths, biases, 0 if found_queries is None else len(found_queries), heads, activation)
    weights = {own: state[key] for own, key in names.items()}
    if found_queries is not None:
        weights["queries.weight"] = found_queries
    head.load_state_dict(weights, assign=True)
    return head


def _places(state: Mapping[str, Tensor]) -> tuple[str | None, str | None, list[str]]:
    """Return the prefix of the attention, the key of the queries and the names of the linear layers in their order."""
    attentions = [key.removesuffix(IN_ATTENTION[0]) for key in state if key.endswith(IN_ATTENTION[0])]
    attention = attentions[0] if attentions else None
    inside = {f"{attention}{part}" for part in IN_ATTENTION if attention is not None}
    queries = next((key for key in state if key.removesuffix(".weight").rpartition(".")[2] in QUERIES), None)
    linear = [
        key.removesuffix(".weight")
        for key, value in state.items()
        if key.endswith(".weight") and key not in inside and key != queries and value.ndim == 2
    ]
    return attention, queries, sorted(linear, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort numbers in names by their size."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
