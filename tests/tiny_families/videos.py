"""Families of video models that have little in common with another."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tiny_families.base import (
    BOTH_MASKS,
    DIM,
    HEADS,
    MASKED_PROMPTS,
    PROMPTS,
    TOKENS,
    VIDEO,
    Blueprint,
    ConfigOnly,
    guider,
    masks,
    picture,
    prompts,
    scheduler,
    tiny,
)
from tiny_families.wan import wan_vae

ROPE = {"rope_axes_dim": (2, 2, 4)}

HUNYUAN_TRANSFORMER = tiny(
    "HunyuanVideoTransformer3DModel",
    in_channels=4,
    out_channels=4,
    **HEADS,
    **ROPE,
    num_single_layers=1,
    num_refiner_layers=1,
    text_embed_dim=DIM,
    pooled_projection_dim=8,
)
HUNYUAN_PROMPTS = {
    **prompts("prompt_embeds"),
    **prompts("pooled_prompt_embeds", shape=(1, 8)),
    **masks(BOTH_MASKS[0]),
}

HUNYUAN_15_TRANSFORMER = tiny(
    "HunyuanVideo15Transformer3DModel",
    in_channels=9,
    out_channels=4,
    **HEADS,
    **ROPE,
    num_refiner_layers=1,
    text_embed_dim=DIM,
    text_embed_2_dim=8,
    image_embed_dim=8,
    target_size=16,
    task_type="t2v",
)
HUNYUAN_15_VAE = partial(ConfigOnly, latent_channels=4, spatial_compression_ratio=16, temporal_compression_ratio=4)
HUNYUAN_15_PROMPTS = {
    **PROMPTS,
    **prompts("prompt_embeds_2", "negative_prompt_embeds_2", shape=(1, TOKENS, 8)),
    **masks("prompt_embeds_mask", "negative_prompt_embeds_mask"),
    **masks("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2"),
}
HUNYUAN_15 = Blueprint(
    "HunyuanVideo15Pipeline",
    HUNYUAN_15_TRANSFORMER,
    HUNYUAN_15_PROMPTS,
    VIDEO,
    components={"vae": HUNYUAN_15_VAE, "guider": guider},
)

MOCHI_TRANSFORMER = tiny(
    "MochiTransformer3DModel",
    in_channels=12,
    **{**HEADS, "num_layers": 2},
    pooled_projection_dim=16,
    text_embed_dim=DIM,
    time_embed_dim=4,
    max_sequence_length=TOKENS,
)

SANA_TRANSFORMER = tiny(
    "SanaVideoTransformer3DModel",
    in_channels=4,
    out_channels=4,
    **{**HEADS, "attention_head_dim": 12},
    num_cross_attention_heads=2,
    cross_attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=DIM,
    rope_max_seq_len=32,
)
SANA_PROMPTS = {"negative_prompt": None, **MASKED_PROMPTS}
SANA_SIZE = {"height": 32, "width": 64, "frames": 5, "use_resolution_binning": False}

MOTIF_TRANSFORMER = tiny(
    "MotifVideoTransformer3DModel",
    in_channels=9,
    out_channels=4,
    **HEADS,
    **ROPE,
    num_single_layers=1,
    text_embed_dim=DIM,
)

EASY_ANIMATE_TRANSFORMER = tiny(
    "EasyAnimateTransformer3DModel",
    **{**HEADS, "attention_head_dim": 16},
    in_channels=4,
    out_channels=4,
    patch_size=2,
    mmdit_layers=1,
    time_embed_dim=8,
    text_embed_dim=DIM,
)


def inverted_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(invert_sigmas=True)


def with_first_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return torch.cat([seen["hidden_states"][:1, :, :1].to(latents), latents], dim=2)


VIDEOS = {
    "HunyuanVideo": Blueprint("HunyuanVideoPipeline", HUNYUAN_TRANSFORMER, HUNYUAN_PROMPTS, VIDEO),
    "HunyuanVideo 1.5": HUNYUAN_15,
    "Mochi": Blueprint(
        "MochiPipeline",
        MOCHI_TRANSFORMER,
        MASKED_PROMPTS,
        {**VIDEO, "num_frames": 7},
        components={"scheduler": inverted_scheduler},
    ),
    "Sana Video": Blueprint(
        "SanaVideoPipeline",
        SANA_TRANSFORMER,
        SANA_PROMPTS,
        SANA_SIZE,
        components={"vae": wan_vae, "scheduler": scheduler("dpm++")},
    ),
    "Sana Video image-to-video": Blueprint(
        "SanaImageToVideoPipeline",
        SANA_TRANSFORMER,
        {"image": picture, **SANA_PROMPTS},
        SANA_SIZE,
        with_first_frame,
        {"vae": wan_vae},
    ),
    "Motif Video": Blueprint(
        "MotifVideoPipeline",
        MOTIF_TRANSFORMER,
        MASKED_PROMPTS,
        VIDEO,
        components={
            "guider": guider,
            "vae": partial(ConfigOnly, z_dim=4, scale_factor_temporal=4, scale_factor_spatial=8),
        },
    ),
    "EasyAnimate": Blueprint(
        "EasyAnimatePipeline",
        EASY_ANIMATE_TRANSFORMER,
        MASKED_PROMPTS,
        {"height": 64, "width": 96, "num_frames": 5},
        components={"vae": HUNYUAN_15_VAE},
    ),
}
