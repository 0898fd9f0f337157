"""Wan and its kin, SkyReels-V2."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tiny_families.base import DIM, IMAGE, PROMPTS, VIDEO, Blueprint, picture, scheduler, transformer

WITH_PICTURE = {"image": picture, **PROMPTS}


def wan_transformer(name: str = "WanTransformer3DModel", channels: int = 4, **config: Any) -> Any:
    common = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": DIM, "freq_dim": 16, "ffn_dim": 16}
    return transformer(
        name, in_channels=channels, num_layers=1, rope_max_seq_len=32, **{"out_channels": 4, **common, **config}
    )


def wan_vae(**config: Any) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    small = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return AutoencoderKLWan(temperal_downsample=[False, True, True], **small, **statistics, **config).eval()


def clip_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    return CLIPVisionModel(config).eval()


def clip_processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def with_seen_frame(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return torch.cat([seen["hidden_states"][:, :, :1].to(latents), latents[:, :, 1:]], dim=2)


VACE_TRANSFORMER = partial(wan_transformer, "WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=72)
SKYREELS_TRANSFORMER = partial(wan_transformer, "SkyReelsV2Transformer3DModel")
SKYREELS_PICTURE_TRANSFORMER = partial(SKYREELS_TRANSFORMER, channels=12, image_dim=8, added_kv_proj_dim=24)
VAE = {"vae": wan_vae}
UNIPC = {"scheduler": scheduler("unipc")}
CLIP = {"image_encoder": clip_encoder, "image_processor": clip_processor}

WAN = {
    "Wan": Blueprint("WanPipeline", wan_transformer, PROMPTS, VIDEO),
    "Wan 2.2": Blueprint(
        "WanPipeline",
        wan_transformer,
        PROMPTS,
        VIDEO,
        components={"transformer_2": wan_transformer, "boundary_ratio": 0.7},
    ),
    "Wan 2.2 5B": Blueprint("WanPipeline", wan_transformer, PROMPTS, VIDEO, components={"expand_timesteps": True}),
    "Wan video-to-video": Blueprint(
        "WanVideoToVideoPipeline",
        wan_transformer,
        {"video": lambda: [picture()] * 5, "strength": 1.0, **PROMPTS},
        IMAGE,
        components=VAE,
    ),
    "Wan image-to-video": Blueprint(
        "WanImageToVideoPipeline", partial(wan_transformer, channels=12), WITH_PICTURE, VIDEO, components=VAE
    ),
    "Wan 2.2 5B image-to-video": Blueprint(
        "WanImageToVideoPipeline",
        wan_transformer,
        WITH_PICTURE,
        VIDEO,
        with_seen_frame,
        {**VAE, "expand_timesteps": True},
    ),
    "Wan VACE": Blueprint("WanVACEPipeline", VACE_TRANSFORMER, PROMPTS, VIDEO, components=VAE),
    "SkyReels-V2": Blueprint("SkyReelsV2Pipeline", SKYREELS_TRANSFORMER, PROMPTS, VIDEO, components=UNIPC),
    "SkyReels-V2 image-to-video": Blueprint(
        "SkyReelsV2ImageToVideoPipeline",
        SKYREELS_PICTURE_TRANSFORMER,
        WITH_PICTURE,
        VIDEO,
        components={**VAE, **CLIP, **UNIPC},
    ),
}
