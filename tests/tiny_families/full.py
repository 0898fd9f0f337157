"""Pipelines with text encoders and autoencoder, which can be saved and called with a prompt."""

from __future__ import annotations

from typing import Any

import torch
from tiny import tiny_tokenizer

from tiny_families.base import DIM, pipeline
from tiny_families.images import FLUX_TRANSFORMER
from tiny_families.ltx import LTX_TRANSFORMER, ltx_vae


def full_flux() -> Any:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return pipeline(
        "FluxPipeline",
        transformer=FLUX_TRANSFORMER(),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=tiny_t5(),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
    )


def full_ltx() -> Any:
    return pipeline(
        "LTXPipeline",
        transformer=LTX_TRANSFORMER(),
        vae=ltx_vae(),
        text_encoder=tiny_t5(),
        tokenizer=tiny_tokenizer(),
    )


def tiny_t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=8
    )
    return T5EncoderModel(config).eval()
