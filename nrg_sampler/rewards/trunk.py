"""The first blocks of a Wan transformer, which give the features that a latent reward reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# What of a transformer's config shapes the trunk; the rest (number of layers, output) is the reward's own.
TRUNK_OPTIONS = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "rope_max_seq_len",
)


class WanTrunk:
    """The forward pass through the first blocks; modules have their names in ``WanTransformer3DModel``."""

    config: Any
    rope: Any
    patch_embedding: Any
    condition_embedder: Any
    blocks: Any
    gradient_checkpointing: bool
    _gradient_checkpointing_func: Callable[..., Any]

    def rotary(self, latents: Tensor, frame_stride: int) -> tuple[Tensor, ...]:
        """Rotary embedding of each token, where frames are ``frame_stride`` apart, shape ``(1, N, 1, D / heads)``."""
        rows, columns = (
            size // patch for size, patch in zip(latents.shape[3:], self.config.patch_size[1:], strict=True)
        )
        frames = frame_stride * (latents.shape[2] - 1) + 1
        whole = self.rope(latents[:, :, :1].expand(-1, -1, frames, -1, -1))  # which uses the shape alone
        return tuple(part.unflatten(1, (-1, rows * columns))[:, ::frame_stride].flatten(1, 2) for part in whole)

    def trunk(self, latents: Tensor, sigma: Tensor, context: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        """Output of the last block, shape ``(B, N, D)``, for noisy latents."""
        hidden: Tensor = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(sigma.expand(len(latents)) * 1000)
        time = embedder.time_embedder(frequencies.to(next(embedder.time_embedder.parameters()).dtype))
        modulation = embedder.time_proj(embedder.act_fn(time.to(hidden.dtype))).unflatten(1, (6, -1))  # (B, 6, D)
        context = context.to(hidden.dtype).expand(len(latents), -1, -1)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden, context, modulation, rotary)
            else:
                hidden = block(hidden, context, modulation, rotary)
        return hidden

    def check_latents(self, latents: Tensor) -> None:
        """Refuse latents that the trunk cannot cut into patches.

        Raises:
            ValueError: If channels or sizes do not fit.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.in_channels:
            raise ValueError(
                f"Expected latents of shape (B, {self.config.in_channels}, T, H, W), but got {tuple(latents.shape)}."
            )
        multiples = self.config.patch_size
        if any(size % multiple for size, multiple in zip(latents.shape[2:], multiples, strict=True)):
            raise ValueError(
                f"Expected latent sizes that are multiples of {tuple(multiples)}, but got {tuple(latents.shape[2:])}."
            )
