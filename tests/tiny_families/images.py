"""Families of image models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiny_families.base import (
    BOTH,
    BOTH_MASKS,
    DIM,
    HEADS,
    IMAGE,
    MASKED_PROMPTS,
    PROMPTS,
    TOKENS,
    Blueprint,
    masks,
    prompts,
    rand,
    scheduler,
    tiny,
)

CHANNELS = {"in_channels": 4, "out_channels": 4}
PATCHES = {"in_channels": 16, **HEADS, "joint_attention_dim": DIM}  # of 2 x 2 latents
ROPE = {"axes_dims_rope": (2, 2, 4)}


def one_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return latents[:, :, None]


def from_patches(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    from diffusers import FluxPipeline

    return FluxPipeline._unpack_latents(latents, 32, 48, 8)[:, :, None]


def from_numbered_patches(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    from diffusers import Flux2Pipeline

    return torch.stack(list(Flux2Pipeline._unpack_latents_with_ids(latents, seen["img_ids"])))[:, :, None]


def from_patches_of_a_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    from diffusers import QwenImagePipeline

    return QwenImagePipeline._unpack_latents(latents, 32, 48, 8)


SD3_TRANSFORMER = tiny(
    "SD3Transformer2DModel",
    **CHANNELS,
    **HEADS,
    sample_size=8,
    joint_attention_dim=DIM,
    caption_projection_dim=16,
    pooled_projection_dim=8,
    pos_embed_max_size=8,
)
SD3_PROMPTS = {**PROMPTS, **prompts("pooled_prompt_embeds", "negative_pooled_prompt_embeds", shape=(1, 8))}

FLUX_TRANSFORMER = tiny(
    "FluxTransformer2DModel", **PATCHES, **ROPE, num_single_layers=1, pooled_projection_dim=8, guidance_embeds=True
)
FLUX_PROMPTS = {**prompts("prompt_embeds"), **prompts("pooled_prompt_embeds", shape=(1, 8))}
FLUX_2_TRANSFORMER = tiny(
    "Flux2Transformer2DModel",
    **PATCHES,
    num_single_layers=1,
    timestep_guidance_channels=8,
    axes_dims_rope=(2, 2, 2, 2),
)

QWEN_TRANSFORMER = tiny("QwenImageTransformer2DModel", **PATCHES, **ROPE, out_channels=4)
QWEN_PROMPTS = {**PROMPTS, **masks("prompt_embeds_mask", "negative_prompt_embeds_mask")}

LUMINA_TRANSFORMER = tiny(
    "Lumina2Transformer2DModel",
    in_channels=4,
    hidden_size=24,
    num_layers=1,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=2,
    axes_dim_rope=(4, 4, 4),
    axes_lens=(16, 16, 16),
    cap_feat_dim=DIM,
)

Z_IMAGE_TRANSFORMER = tiny(
    "ZImageTransformer2DModel",
    in_channels=4,
    dim=24,
    n_layers=1,
    n_refiner_layers=1,
    n_heads=2,
    n_kv_heads=2,
    cap_feat_dim=DIM,
    axes_dims=[4, 4, 4],
    axes_lens=[64, 16, 16],
)
# one tensor a prompt, each as long as its own
Z_IMAGE_PROMPTS = {name: [rand(length, DIM, seed=length)] for name, length in zip(BOTH, (TOKENS, 3), strict=True)}

CHROMA_TRANSFORMER = tiny(
    "ChromaTransformer2DModel",
    **PATCHES,
    **ROPE,
    num_single_layers=1,
    approximator_num_channels=8,
    approximator_hidden_dim=8,
    approximator_layers=1,
)
CHROMA_PROMPTS = {**PROMPTS, **{name: mask.float() for name, mask in masks(*BOTH_MASKS).items()}}

AURA_FLOW_TRANSFORMER = tiny(
    "AuraFlowTransformer2DModel",
    sample_size=8,
    in_channels=4,
    num_mmdit_layers=1,
    num_single_dit_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=DIM,
    caption_projection_dim=16,
    pos_embed_max_size=64,
)

COGVIEW_TRANSFORMER = tiny(
    "CogView4Transformer2DModel",
    **CHANNELS,
    **HEADS,
    text_embed_dim=DIM,
    time_embed_dim=8,
    condition_dim=4,
    rope_axes_dim=(8, 8),
)

SANA_TRANSFORMER = tiny(
    "SanaTransformer2DModel",
    **CHANNELS,
    **HEADS,
    num_cross_attention_heads=2,
    cross_attention_head_dim=8,
    cross_attention_dim=16,
    caption_channels=DIM,
    sample_size=8,
)
SANA_SETTINGS = {"negative_prompt": None, "use_resolution_binning": False, "height": 128, "width": 192}

IMAGES = {
    "Stable Diffusion 3": Blueprint("StableDiffusion3Pipeline", SD3_TRANSFORMER, SD3_PROMPTS, IMAGE, one_frame),
    "FLUX.1": Blueprint("FluxPipeline", FLUX_TRANSFORMER, FLUX_PROMPTS, IMAGE, from_patches),
    "FLUX.2": Blueprint("Flux2Pipeline", FLUX_2_TRANSFORMER, prompts("prompt_embeds"), IMAGE, from_numbered_patches),
    "Qwen-Image": Blueprint("QwenImagePipeline", QWEN_TRANSFORMER, QWEN_PROMPTS, IMAGE, from_patches_of_a_frame),
    "Lumina 2": Blueprint("Lumina2Pipeline", LUMINA_TRANSFORMER, MASKED_PROMPTS, IMAGE, one_frame),
    "Z-Image": Blueprint("ZImagePipeline", Z_IMAGE_TRANSFORMER, Z_IMAGE_PROMPTS, IMAGE, one_frame),
    "Chroma": Blueprint("ChromaPipeline", CHROMA_TRANSFORMER, CHROMA_PROMPTS, IMAGE, from_patches),
    "AuraFlow": Blueprint("AuraFlowPipeline", AURA_FLOW_TRANSFORMER, MASKED_PROMPTS, IMAGE, one_frame),
    "CogView4": Blueprint("CogView4Pipeline", COGVIEW_TRANSFORMER, PROMPTS, IMAGE, one_frame),
    "Sana": Blueprint(
        "SanaPipeline",
        SANA_TRANSFORMER,
        MASKED_PROMPTS,
        SANA_SETTINGS,
        one_frame,
        {"scheduler": scheduler("dpm++")},
    ),
}
