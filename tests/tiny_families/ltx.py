"""LTX and LTX-2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tiny_families.base import DIM, HEADS, MASKED_PROMPTS, TOKENS, Blueprint, picture, tiny

SIZE = {"height": 64, "width": 96, "num_frames": 9}  # latents (1, 4, 2, 2, 3)
CHANNELS = {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 16, "caption_channels": DIM}
LTX_TRANSFORMER = tiny("LTXVideoTransformer3DModel", **CHANNELS, **HEADS)
LTX_2_TRANSFORMER = tiny(
    "LTX2VideoTransformer3DModel",
    **CHANNELS,
    **HEADS,
    audio_in_channels=128,
    audio_out_channels=128,
    audio_num_attention_heads=2,
    audio_attention_head_dim=4,
    audio_cross_attention_dim=8,
)


def ltx_vae() -> Any:
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def unpack(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    from diffusers import LTXPipeline

    return LTXPipeline._unpack_latents(latents[:, -12:], 2, 2, 3)


def with_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    frame = unpack(seen["hidden_states"][:1], seen, sigma)[:, :, :1]
    return torch.cat([frame.to(latents), latents], dim=2)


def conditions() -> Any:
    """Give a frame at the start and one in the middle, whose tokens come before those of the video."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    return [LTXVideoCondition(image=picture(), frame_index=index) for index in (0, 8)]


def connectors() -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    heads = {**HEADS, "num_learnable_registers": TOKENS}
    torch.manual_seed(0)
    return LTX2TextConnectors(
        caption_channels=DIM,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in heads.items()},
    )


def with_statistics(pipe: Any) -> None:
    audio = SimpleNamespace(mel_bins=64, latent_channels=8)
    pipe.audio_vae = SimpleNamespace(latents_mean=torch.zeros(128), latents_std=torch.ones(128), config=audio)
    unscaled = SimpleNamespace(scaling_factor=1.0)
    pipe.vae = SimpleNamespace(latents_mean=torch.zeros(4), latents_std=torch.ones(4), config=unscaled)


LTX = {
    "LTX": Blueprint("LTXPipeline", LTX_TRANSFORMER, MASKED_PROMPTS, SIZE, unpack),
    "LTX image-to-video": Blueprint(
        "LTXImageToVideoPipeline",
        LTX_TRANSFORMER,
        {"image": picture, **MASKED_PROMPTS},
        SIZE,
        with_frame,
        {"vae": ltx_vae},
    ),
    "LTX with conditions": Blueprint(
        "LTXConditionPipeline",
        LTX_TRANSFORMER,
        {"conditions": conditions, **MASKED_PROMPTS},
        SIZE,
        unpack,
        {"vae": ltx_vae},
    ),
    "LTX-2": Blueprint(
        "LTX2Pipeline",
        LTX_2_TRANSFORMER,
        {"spatio_temporal_guidance_blocks": [0], **MASKED_PROMPTS},
        SIZE,
        unpack,
        {"connectors": connectors},
        with_statistics,
    ),
}
