"""HPSv2 is published with the names of open_clip; here are those of transformers' ``CLIPModel`` for them.

For each weight of the ``CLIPModel`` it is known where it lies in the published file: as it is, transposed, or as one
third of a matrix that holds queries, keys and values. So every key is accounted for in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nrg_sampler.rewards.published import require_same_keys

# Of H/14; what is not said here is the default of `CLIPConfig`. The activation is gelu, OpenAI's own models have
# quick_gelu.
H14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
}

WHOLE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
}
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
BLOCK = re.compile(
    r"(?P<tower>text|vision)_model\.encoder\.layers\.(?P<block>\d+)\.(?P<part>.+)\.(?P<kind>weight|bias)"
)
IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
THIRDS = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def open_clip_name(name: str) -> tuple[str, int | None]:
    """Return the open_clip key that holds a weight of ``CLIPModel``, and which third of it, if not the whole."""
    if match := BLOCK.fullmatch(name):
        block = f"{'visual.' * (match['tower'] == 'vision')}transformer.resblocks.{match['block']}"
        if (third := THIRDS.get(match["part"])) is not None:
            return f"{block}.attn.in_proj_{match['kind']}", third
        return f"{block}.{IN_BLOCK[match['part']]}.{match['kind']}", None
    if (found := {**WHOLE, **TRANSPOSED}.get(name)) is not None:
        return found, None
    part, _, kind = name.rpartition(".")
    return f"{WHOLE[part]}.{kind}", None


def from_open_clip(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the weights of a ``CLIPModel``.

    Args:
        state: Weights by their open_clip names.
        expected: Those of the model, whose values do not count.
        source: The file, for the message.

    Raises:
        ValueError: If a key is missing, too many or of another shape; it is named as in the file.
    """
    require_same_keys(state, _published_shapes(expected), source)
    weights = {}
    for name in expected:
        key, third = open_clip_name(name)
        value = state[key] if third is None else state[key].chunk(3)[third]
        weights[name] = (value.T if name in TRANSPOSED else value).contiguous()
    return weights


def _published_shapes(expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file has to hold, as empty tensors."""
    shapes: dict[str, Tensor] = {}
    for name, value in expected.items():
        key, third = open_clip_name(name)
        rows = value.shape[0] * 3 if third is not None else 0
        shape: Iterable[int] = (rows, *value.shape[1:]) if rows else value.shape
        shapes[key] = value.new_empty(
            tuple(reversed(tuple(shape))) if name in TRANSPOSED else tuple(shape), device="meta"
        )
    return shapes
