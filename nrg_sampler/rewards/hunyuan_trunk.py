"""The first blocks of a HunyuanVideo transformer, whose sizes are read from the shapes of its weights.

The weights have the names of diffusers' ``HunyuanVideoTransformer3DModel``. What shapes cannot tell, the sizes of the
three parts of its rotary embedding, is that of the published transformer unless it is stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nrg_sampler.checkpoints import first_few
from nrg_sampler.rewards.published import require_same_keys

FIRST = "x_embedder.proj.weight"  # by which a trunk is known in a state dict
ROPE = (16, 56, 56)  # of frames, height and width, in heads of 128
OUTPUT = re.compile(r"(norm_out\.linear|proj_out)\.(weight|bias)")  # of the whole transformer; nothing reads it here
BLOCKS = {"num_layers": "transformer_blocks", "num_single_layers": "single_transformer_blocks"}
REFINER = "context_embedder.token_refiner.refiner_blocks"


def split(state: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Separate the weights of a trunk, by their names in diffusers, from all others.

    Args:
        state: Of a checkpoint; the trunk's names may all begin with the same prefix.
        source: Of the checkpoint, for the message.

    Returns:
        The trunk, the others, and the keys of an output layer that nothing reads.

    Raises:
        ValueError: If there is no trunk, or more than one.
    """
    prefixes = [key.removesuffix(FIRST) for key in state if key.endswith(FIRST)]
    if len(prefixes) != 1:
        got = f"several: {first_few([f'{prefix}{FIRST}' for prefix in prefixes])}" if prefixes else first_few([*state])
        raise ValueError(
            f"Expected one trunk of HunyuanVideo by its names in diffusers in {source}, with a {FIRST}, but found "
            f"{got or 'no weights'}; name the folder of the latent reward, or convert its keys."
        )
    parts = (FIRST.partition(".")[0], "context_embedder", "time_text_embed", *BLOCKS.values())
    trunk: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, value in state.items():
        name = key.removeprefix(prefixes[0])
        inside = key.startswith(prefixes[0])
        if inside and name.partition(".")[0] in parts:
            trunk[name] = value
        elif inside and OUTPUT.fullmatch(name) and len(value) > 1:
            unused.append(key)
        else:
            others[key] = value
    return trunk, others, unused


def config_of(trunk: Mapping[str, Tensor], settings: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the config of the transformer whose first blocks are in a state dict.

    Args:
        trunk: Weights by their names in diffusers.
        settings: ``rope_axes_dim`` and ``rope_theta``, where they are not those of the published transformer.
        source: Of the weights, for the message.

    Raises:
        ValueError: If a weight that tells a size is missing, or the parts of the rotary embedding do not fit.
    """

    def shape(*names: str) -> tuple[int, ...]:
        for name in names:
            if name in trunk:
                return tuple(trunk[name].shape)
        raise ValueError(
            f"Expected the first blocks of HunyuanVideo in {source}, but they lack {' and '.join(names)}; download "
            "the folder again."
        )

    dim, channels, frames, side, _ = shape(FIRST)
    (head,) = shape(*(f"{blocks}.0.attn.norm_q.weight" for blocks in BLOCKS.values()))
    wide = shape("transformer_blocks.0.ff.net.0.proj.weight", "single_transformer_blocks.0.proj_mlp.weight")[0]
    rope = tuple(settings.get("rope_axes_dim") or ROPE)
    if sum(rope) != head:
        raise ValueError(
            f"Expected the parts of the rotary embedding to sum to {head}, the size of a head in {source}, but got "
            f"{', '.join(map(str, rope))}; state them as `rope_axes_dim` in a config.json beside it."
        )
    return {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": dim // head,
        "attention_head_dim": head,
        **{setting: _count(trunk, blocks) for setting, blocks in BLOCKS.items()},
        "num_refiner_layers": _count(trunk, REFINER),
        "mlp_ratio": wide / dim,
        "patch_size": side,
        "patch_size_t": frames,
        "guidance_embeds": any(name.startswith("time_text_embed.guidance_embedder.") for name in trunk),
        "text_embed_dim": shape("context_embedder.proj_in.weight")[1],
        "pooled_projection_dim": shape("time_text_embed.text_embedder.linear_1.weight")[1],
        "rope_theta": float(settings.get("rope_theta") or 256.0),
        "rope_axes_dim": rope,
    }


def load_trunk(trunk: Mapping[str, Tensor], settings: Mapping[str, Any], source: Path) -> Any:
    """Return a ``HunyuanVideoTransformer3DModel`` of the blocks in a state dict, without its output layer.

    Raises:
        ValueError: If a key is missing or too many; it is named.
    """
    from accelerate import init_empty_weights
    from diffusers import HunyuanVideoTransformer3DModel

    config = config_of(trunk, settings, source)
    with init_empty_weights(include_buffers=False):
        model: Any = HunyuanVideoTransformer3DModel(**config)
    model.norm_out, model.proj_out = nn.Identity(), nn.Identity()
    require_same_keys(trunk, model.state_dict(), source)
    model.load_state_dict(dict(trunk), assign=True)
    return model


def _count(trunk: Mapping[str, Tensor], blocks: str) -> int:
    """Return how many blocks there are, by the highest number."""
    numbers = [int(match[1]) for name in trunk if (match := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
