"""Families that make pictures and videos with one transformer: Kandinsky 5 and Cosmos-Predict2."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tiny_families.base import DIM, HEADS, IMAGE, PROMPTS, TOKENS, VIDEO, Blueprint, picture, prompts, tiny
from tiny_families.wan import wan_vae

KANDINSKY_TRANSFORMER = tiny(
    "Kandinsky5Transformer3DModel",
    in_visual_dim=4,
    out_visual_dim=4,
    in_text_dim=DIM,
    in_text_dim2=8,
    time_dim=16,
    model_dim=16,
    ff_dim=16,
    num_text_blocks=1,
    num_visual_blocks=1,
    axes_dims=(2, 2, 4),
)
LENGTHS = torch.tensor([0, TOKENS], dtype=torch.int32)
KANDINSKY_PROMPTS = {
    **prompts("prompt_embeds_qwen", "negative_prompt_embeds_qwen"),
    **prompts("prompt_embeds_clip", "negative_prompt_embeds_clip", shape=(1, 8)),
    "prompt_cu_seqlens": LENGTHS,
    "negative_prompt_cu_seqlens": LENGTHS,
}


def from_channels_last(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return torch.einsum("bthwc->bcthw", latents)


def with_given_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    frame = seen["hidden_states"][:, :1, :, :, :4].to(latents)
    return from_channels_last(torch.cat([frame, latents], dim=1), seen, sigma)


def with_resolution(pipe: Any) -> None:
    pipe.resolutions = [(IMAGE["width"], IMAGE["height"])]


def kandinsky_vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()


class SafeAlways(torch.nn.Module):
    """Stands for the guard of the Cosmos pipelines, a package of its own."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def karras_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)


COSMOS_TRANSFORMER = tiny(
    "CosmosTransformer3DModel",
    out_channels=4,
    **{**HEADS, "attention_head_dim": 16},
    text_embed_dim=DIM,
    adaln_lora_dim=4,
    max_size=(4, 8, 8),
    rope_scale=(1.0, 1.0, 1.0),
    extra_pos_embed_type=None,
)
COSMOS = {"scheduler": karras_scheduler, "vae": wan_vae, "safety_checker": SafeAlways}


def without_torchvision(pipe: Any) -> None:
    """Let Cosmos' transformer resize a mask of zeros, for which it uses torchvision, where there is none."""
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        resize = SimpleNamespace(resize=lambda mask, size, interpolation: mask[..., : size[0], : size[1]])
        transformer_cosmos.transforms = SimpleNamespace(
            functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest")
        )


def unscale(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return latents / (1 + sigma / (1 - sigma))


PAIRS = {
    "Kandinsky 5": Blueprint(
        "Kandinsky5T2VPipeline", KANDINSKY_TRANSFORMER, KANDINSKY_PROMPTS, VIDEO, from_channels_last
    ),
    "Kandinsky 5 image": Blueprint(
        "Kandinsky5T2IPipeline",
        KANDINSKY_TRANSFORMER,
        KANDINSKY_PROMPTS,
        IMAGE,
        from_channels_last,
        finish=with_resolution,
    ),
    "Kandinsky 5 image-to-video": Blueprint(
        "Kandinsky5I2VPipeline",
        partial(KANDINSKY_TRANSFORMER, visual_cond=True),
        {"image": picture, **KANDINSKY_PROMPTS},
        {**VIDEO, "num_frames": 21},
        with_given_frame,
        {"vae": kandinsky_vae},
    ),
    "Cosmos-Predict2 image": Blueprint(
        "Cosmos2TextToImagePipeline",
        partial(COSMOS_TRANSFORMER, in_channels=4),
        PROMPTS,
        IMAGE,
        unscale,
        COSMOS,
        without_torchvision,
    ),
    "Cosmos-Predict2 video": Blueprint(
        "Cosmos2VideoToWorldPipeline",
        partial(COSMOS_TRANSFORMER, in_channels=5),
        {"image": picture, **PROMPTS},
        VIDEO,
        unscale,
        COSMOS,
        without_torchvision,
    ),
}
