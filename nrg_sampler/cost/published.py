"""Published judges and autoencoders at their published sizes, without weights: for counting what they cost.

Build them under a ``FakeTensorMode``, where they take no memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nrg_sampler.rewards.named.aesthetic import ClipAestheticJudge, ClipHead, SiglipAestheticJudge, SiglipHead
from nrg_sampler.rewards.named.clip import ClipJudge
from nrg_sampler.rewards.named.hpsv2 import H14
from nrg_sampler.rewards.named.imagereward import TEXT, VISION, ImageRewardJudge, new_model
from nrg_sampler.rewards.named.table import Entry

L14: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
}
L14_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}


class Tokens:
    """A tokenizer by which every prompt has as many tokens.

    Args:
        count: How many.
        end: The last of them.
    """

    def __init__(self, count: int, end: int) -> None:
        self.count, self.eos_token_id = count, end

    def __call__(self, prompts: list[str], return_tensors: str | None = None, **options: Any) -> dict[str, Any]:
        """Return token ids, and which of them count."""
        rows = [[1] * (self.count - 1) + [self.eos_token_id] for _ in prompts]
        if return_tensors is None:
            return {"input_ids": rows}
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _clip(entry: Entry) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    large = {"projection_dim": 768, "text_config": L14_TEXT, "vision_config": L14}
    config = CLIPConfig(**(large if entry.name == "clipscore" else H14))
    tokens = Tokens(config.text_config.max_position_embeddings, config.text_config.eos_token_id)
    return ClipJudge(entry, CLIPModel(config), tokens)


def _aesthetic(entry: Entry) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return ClipAestheticJudge(entry, CLIPVisionModelWithProjection(CLIPVisionConfig(**L14)), ClipHead(768))


def _aesthetic_25(entry: Entry) -> nn.Module:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipAestheticJudge(entry, SiglipVisionModel(SiglipVisionConfig(**SO400M)), SiglipHead(1152))


def _imagereward(entry: Entry) -> nn.Module:
    from transformers import BlipConfig

    config = BlipConfig(vision_config=VISION, text_config=TEXT)
    return ImageRewardJudge(entry, new_model(config.vision_config, config.text_config), Tokens(35, 102))


JUDGES: dict[str, Callable[[Entry], nn.Module]] = {
    "pickscore": _clip,
    "hpsv2": _clip,
    "hpsv2.1": _clip,
    "clipscore": _clip,
    "aesthetic": _aesthetic,
    "aesthetic-v2.5": _aesthetic_25,
    "imagereward": _imagereward,
}


def judge_of(entry: Entry) -> Any:
    """Return the judge of an entry of the table."""
    judge: Any = JUDGES[entry.name](entry)
    return judge


def _image_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    vae: nn.Module = AutoencoderKL(
        latent_channels=16,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return vae


def _by_default(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import diffusers

        vae: nn.Module = getattr(diffusers, name)()
        return vae

    return make


# of a workload; those of Wan, LTX and HunyuanVideo are the defaults of their classes
VAES: dict[str, Callable[[], nn.Module]] = {
    "wan-1.3b": _by_default("AutoencoderKLWan"),
    "wan-14b": _by_default("AutoencoderKLWan"),
    "ltx": _by_default("AutoencoderKLLTXVideo"),
    "hunyuan": _by_default("AutoencoderKLHunyuanVideo"),
    "sd3": _image_vae,
    "flux": _image_vae,
}


def vae_of(name: str) -> Any:
    """Return the autoencoder of a workload.

    Raises:
        ValueError: If it has none that is published.
    """
    if name not in VAES:
        raise ValueError(f"Expected a config with a published autoencoder ({', '.join(VAES)}), but got {name}.")
    vae: Any = VAES[name]().eval().requires_grad_(False)
    return vae
