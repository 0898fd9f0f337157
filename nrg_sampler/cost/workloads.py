"""Networks at the sizes people run: what one denoising step computes, with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.guidance.part import Part
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.frames import ALL
from nrg_sampler.rewards.recompute import recomputed


@dataclass(frozen=True)
class Workload:
    """A transformer, the latents of one video and the prompt that comes with them.

    Args:
        name: What tables call it.
        transformer: Name of its class in diffusers.
        config: What differs from the defaults of that class.
        latents: Shape of the latents as the transformer takes them, ``(B, C, T, H, W)``, ``(B, C, H, W)`` or packed
            ``(B, tokens, C)``.
        about: What is sampled, in words.
        prompt_tokens: Tokens of the prompt.
        evaluations: Forward passes in an unguided step: 2 with classifier-free guidance, 1 where it is distilled in.
        grid: Frames, height and width of packed latents.
        words: Tokens of the prompt that are no padding; all by default.
        reward: What differs from the defaults of ``LatentReward``, where that is the reward.
        compression: Frames and pixels to a side that the VAE makes one latent of.
    """

    name: str
    transformer: str
    config: dict[str, Any]
    latents: tuple[int, ...]
    about: str
    prompt_tokens: int = 512
    evaluations: int = 2
    grid: tuple[int, int, int] = (1, 1, 1)
    words: int | None = None
    reward: Mapping[str, Any] = field(default_factory=dict)
    compression: tuple[int, int] = (4, 8)

    def sized(self, height: int, width: int, frames: int) -> Workload:
        """Return the same for videos of another size, in pixels and frames.

        Raises:
            ValueError: If it samples no videos ``(B, C, T, H, W)``, or cannot sample that size.
        """
        if len(self.latents) != 5 or self.latents[2] == 1:
            raise ValueError(
                f"Expected a config of videos with latents (B, C, T, H, W) for another size, but got {self.name}; "
                "leave --size out."
            )
        temporal, spatial = self.compression
        patch = self.config["patch_size"]
        side = spatial * (patch if isinstance(patch, int) else patch[-1])
        if height % side or width % side or frames % temporal != 1 or min(height, width, frames) < 1:
            raise ValueError(
                f"Expected a height and width that are multiples of {side}, and a multiple of {temporal} and 1 more "
                f"frames, for {self.name}, but got {height}x{width}, {frames} frames."
            )
        latents = (frames // temporal + 1, height // spatial, width // spatial)
        return replace(self, latents=(*self.latents[:2], *latents), about=f"{height}x{width}, {frames} frames")

    def at_once(self, count: int) -> Workload:
        """Return the same for ``count`` videos sampled in one batch."""
        about = self.about if count == 1 else f"{self.about}, {count} at once"
        return replace(self, latents=(count, *self.latents[1:]), about=about)

    def build(self, num_blocks: int | None = None) -> Any:
        """Return the transformer with random weights, or its first ``num_blocks`` blocks; frozen."""
        import diffusers

        layers = _layer_counts(self.config) if num_blocks is None else _first_layers(self.config, num_blocks)
        transformer = getattr(diffusers, self.transformer)(**{**self.config, **layers})
        return transformer.eval().requires_grad_(False)

    def build_reward(self, num_blocks: int) -> Any:
        """Return a reward on the first ``num_blocks`` blocks: the latent reward of Wan, the bare trunk elsewhere."""
        if self.transformer != "WanTransformer3DModel":
            return TrunkReward(self.build(num_blocks), self.inputs)
        from nrg_sampler.rewards.latent import LatentReward
        from nrg_sampler.rewards.trunk import TRUNK_OPTIONS

        trunk = {name: value for name, value in self.config.items() if name in TRUNK_OPTIONS}
        options = {**trunk, **self.reward}
        reward: LatentReward = LatentReward(num_blocks=num_blocks, **options).eval().requires_grad_(False)
        return reward

    def inputs(self, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
        """Return the keyword arguments of the transformer.

        Args:
            latents: Shape as in ``latents``.
            prompt: Features of the prompt, shape ``(B, L, D)``.
        """
        timestep = torch.full((len(latents),), 500.0, device=latents.device)
        given = {"hidden_states": latents, "encoder_hidden_states": prompt, "timestep": timestep}
        return {**given, **EXTRA_INPUTS[self.transformer](self, latents, prompt), "return_dict": False}

    def random_inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return noise in the shape of the latents, and random features of a prompt."""
        width = PROMPT_WIDTH[self.transformer](self.config)
        shape = (self.latents[0], self.prompt_tokens, width)
        return (torch.randn(self.latents, device=device, dtype=dtype), torch.randn(shape, device=device, dtype=dtype))

    def read_by(self, guidance: RewardGuidance) -> Workload:
        """Return the same with the part of the latents that the reward reads.

        Raises:
            ValueError: If the latents are packed or an image, of which no part is counted.
        """
        frames = guidance.frames or ALL
        if frames == ALL and guidance.crop == 1:
            return self
        if len(self.latents) != 5:
            raise ValueError(
                f"Expected frames='all' and crop=1 for {self.name}, but got {frames!r} and {guidance.crop:g}; parts "
                "are counted of latents (B, C, T, H, W)."
            )
        window = Part.of(self.latents, frames, guidance.crop, 0)
        return replace(self, latents=tuple(window.cut(torch.empty(self.latents, device="meta")).shape))

    def prompt_mask(self, device: str) -> Tensor:
        """Return which tokens of the prompt count, shape ``(B, L)``."""
        words = self.prompt_tokens if self.words is None else self.words
        return (torch.arange(self.prompt_tokens, device=device) < words).expand(self.latents[0], -1)

    @property
    def tokens(self) -> int:
        """Number of latent tokens that attend to each other."""
        if len(self.latents) == 3:
            return self.latents[1]
        patch = self.config["patch_size"]
        patches = (1,) * (len(self.latents) - 4) + (patch,) * 2 if isinstance(patch, int) else patch
        return math.prod(size // step for size, step in zip(self.latents[2:], patches, strict=True))


class TrunkReward(nn.Module):
    """The first blocks of a transformer, averaged: what a latent reward on them costs, and nothing else.

    Args:
        trunk: A transformer with few blocks.
        inputs: Makes the keyword arguments of ``trunk`` from latents and the prompt.
    """

    axes: tuple[str, ...] = ("mean",)

    def __init__(self, trunk: Any, inputs: Callable[[Tensor, Tensor], dict[str, Any]]) -> None:
        super().__init__()
        self.trunk, self.inputs = trunk, inputs

    def enable_gradient_checkpointing(self) -> None:
        """Keep of each block what its attention gave, and compute the rest again on the way back."""
        self.trunk.enable_gradient_checkpointing(recomputed)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the mean of the trunk's output, shape ``(B, 1)``."""
        assert conditioning.prompt_embeds is not None
        dtype = next(self.trunk.parameters()).dtype
        (features,) = self.trunk(**self.inputs(latents.to(dtype), conditioning.prompt_embeds))
        mean: Tensor = features.flatten(1).float().mean(dim=1, keepdim=True)
        return mean


def _layer_counts(config: dict[str, Any]) -> dict[str, int]:
    return {name: config[name] for name in ("num_layers", "num_single_layers") if name in config}


def _first_layers(config: dict[str, Any], num_blocks: int) -> dict[str, int]:
    counts, left = _layer_counts(config), num_blocks
    for name, count in counts.items():
        counts[name] = min(left, count)
        left -= counts[name]
    return counts


def _wan_inputs(workload: Workload, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
    return {}


def _ltx_inputs(workload: Workload, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
    frames, height, width = workload.grid
    mask = torch.ones(prompt.shape[:2], device=prompt.device)
    return {"encoder_attention_mask": mask, "num_frames": frames, "height": height, "width": width}


def _hunyuan_inputs(workload: Workload, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
    pooled = torch.zeros(len(latents), 768, device=latents.device, dtype=latents.dtype)
    mask = torch.ones(prompt.shape[:2], device=prompt.device)
    guidance = torch.full((len(latents),), 6000.0, device=latents.device)
    return {"encoder_attention_mask": mask, "pooled_projections": pooled, "guidance": guidance}


def _sd3_inputs(workload: Workload, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
    return {"pooled_projections": torch.zeros(len(latents), 2048, device=latents.device, dtype=latents.dtype)}


def _flux_inputs(workload: Workload, latents: Tensor, prompt: Tensor) -> dict[str, Any]:
    _, height, width = workload.grid
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)  # (H * W, 3)
    return {
        "pooled_projections": torch.zeros(len(latents), 768, device=latents.device, dtype=latents.dtype),
        "img_ids": places.to(latents.device, latents.dtype),
        "txt_ids": torch.zeros(prompt.shape[1], 3, device=latents.device, dtype=latents.dtype),
        "guidance": torch.full((len(latents),), 3.5, device=latents.device),
    }


# class of the transformer -> what it takes besides latents, prompt and timestep
EXTRA_INPUTS: dict[str, Callable[[Workload, Tensor, Tensor], dict[str, Any]]] = {
    "WanTransformer3DModel": _wan_inputs,
    "LTXVideoTransformer3DModel": _ltx_inputs,
    "HunyuanVideoTransformer3DModel": _hunyuan_inputs,
    "SD3Transformer2DModel": _sd3_inputs,
    "FluxTransformer2DModel": _flux_inputs,
}
# class of the transformer -> numbers per prompt token
PROMPT_WIDTH: dict[str, Callable[[dict[str, Any]], int]] = {
    "WanTransformer3DModel": lambda config: int(config["text_dim"]),
    "LTXVideoTransformer3DModel": lambda config: int(config["caption_channels"]),
    "HunyuanVideoTransformer3DModel": lambda config: int(config["text_embed_dim"]),
    "SD3Transformer2DModel": lambda config: int(config["joint_attention_dim"]),
    "FluxTransformer2DModel": lambda config: int(config["joint_attention_dim"]),
}


def _wan(name: str, heads: int, ffn: int, layers: int) -> Workload:
    config = {"num_attention_heads": heads, "attention_head_dim": 128, "ffn_dim": ffn, "num_layers": layers}
    shape = {"patch_size": (1, 2, 2), "in_channels": 16, "out_channels": 16, "text_dim": 4096}
    return Workload(name, "WanTransformer3DModel", {**config, **shape}, (1, 16, 21, 60, 104), "480x832, 81 frames")


def _shapes() -> Workload:
    """The bundled model with its reward, and a prompt of the usual length."""
    trunk = {"num_attention_heads": 6, "attention_head_dim": 32, "ffn_dim": 768, "num_layers": 8, "freq_dim": 128}
    shape = {"patch_size": (1, 2, 2), "in_channels": 16, "out_channels": 16, "text_dim": 96, "rope_max_seq_len": 64}
    latents = (1, 16, 7, 8, 8)
    return Workload(
        name="shapes",
        transformer="WanTransformer3DModel",
        config={**trunk, **shape},
        latents=latents,
        about="64x64, 13 frames",
        prompt_tokens=32,
        words=12,
        reward={"num_token_reads": 1},
        compression=(2, 8),
    )


LTX = {
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "num_layers": 28,
    "in_channels": 128,
    "caption_channels": 4096,
}
HUNYUAN = {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "patch_size": 2,
    "text_embed_dim": 4096,
}
SD3 = {
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "num_layers": 24,
    "patch_size": 2,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
FLUX = {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 19,
    "num_single_layers": 38,
    "joint_attention_dim": 4096,
    "guidance_embeds": True,
}

WORKLOADS = {
    workload.name: workload
    for workload in (
        _shapes(),
        _wan("wan-1.3b", 12, 8960, 30),
        _wan("wan-14b", 40, 13824, 40),
        Workload(
            "ltx", "LTXVideoTransformer3DModel", LTX, (1, 7392, 128), "512x704, 161 frames", 128, grid=(21, 16, 22)
        ),
        Workload(
            "hunyuan", "HunyuanVideoTransformer3DModel", HUNYUAN, (1, 16, 16, 68, 120), "544x960, 61 frames", 256, 1
        ),
        Workload("sd3", "SD3Transformer2DModel", SD3, (1, 16, 128, 128), "1024x1024", 333),
        Workload("flux", "FluxTransformer2DModel", FLUX, (1, 4096, 64), "1024x1024", 512, 1, (1, 64, 64)),
    )
}
