"""Tiny pipelines with random weights, built from the real diffusers classes, and rewards with a known optimum."""

from __future__ import annotations

from typing import Any

import torch

WORDS = ("a", "red", "blue", "circle", "square", "moving", "left", "right")
LATENT_CHANNELS = 16  # AutoencoderKLWan's statistics have 16 entries

# of a tiny Wan pipeline, as a folder states them
SAMPLING = {
    "height": 16,
    "width": 16,
    "num_frames": 3,
    "num_inference_steps": 3,
    "max_sequence_length": 8,
    "guidance_scale": 4.0,
    "closed_vocabulary": True,
}


def tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def tiny_transformer(seed: int = 0) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()


def tiny_components() -> dict[str, Any]:
    from diffusers import AutoencoderKLWan
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        scale_factor_spatial=2,
        scale_factor_temporal=2,
    )
    text = UMT5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=8
    )
    return {
        "vae": vae.eval(),
        "text_encoder": UMT5EncoderModel(text).eval(),
        "tokenizer": tiny_tokenizer(),
        "transformer": tiny_transformer(),
    }


def schedulers() -> dict[str, Any]:
    from diffusers import (
        DPMSolverMultistepScheduler,
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        UniPCMultistepScheduler,
    )

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return {
        "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "unipc": UniPCMultistepScheduler(**flow),
        "dpm++": DPMSolverMultistepScheduler(**flow),
        "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    }


def sample(pipe: Any, prompt: Any = "a red circle", seed: int = 0, **kwargs: Any) -> torch.Tensor:
    """Sample latents (B, 16, 2, 8, 8) in a few steps."""
    settings = {
        "height": 16,
        "width": 16,
        "num_frames": 3,
        "num_inference_steps": 4,
        "max_sequence_length": 8,
        "output_type": "latent",
    }
    batch = len(prompt) if isinstance(prompt, list) else kwargs.get("num_videos_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(batch)]
    return pipe(prompt, generator=generators, **{**settings, **kwargs}).frames


class TowardTarget:
    """Minus the squared distance of the expected clean latents to a constant: a quadratic with a known optimum.

    Its gradient fades like 1 - sigma, as that of a noise-aware reward does.
    """

    axes = ("closeness",)

    def __init__(self, target: float = 1.0) -> None:
        self.target = target

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        alpha = (1 - sigma).reshape(-1, 1, 1, 1, 1)
        return -((latents - alpha * self.target) ** 2 * alpha).mean(dim=(1, 2, 3, 4))[:, None]


class PromptMatch:
    """Reward latents whose mean follows the prompt, so that a wrong or missing prompt shows."""

    axes = ("match",)

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        self.seen.append(conditioning.prompt_embeds.detach().clone())
        wanted = conditioning.prompt_embeds.float().mean(dim=(1, 2))
        return ((1 - sigma) * latents.mean(dim=(1, 2, 3, 4)) * wanted)[:, None]
