"""The first blocks of a Wan transformer, which give the features that a latent reward reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.flow import clean_from

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


class NoiseBeside(nn.Module):
    """What a trunk that reads the predicted clean latents is given beside them: the noisy ones and their noise level.

    It begins with zeros: the trunk reads a prediction as it read clean latents, and learns what the noise says.

    Args:
        patch_embedding: Of the trunk.
        dim: Width of the trunk.
    """

    def __init__(self, patch_embedding: nn.Conv3d, dim: int) -> None:
        super().__init__()
        kernel: Any = patch_embedding.kernel_size
        self.patch_embedding = nn.Conv3d(patch_embedding.in_channels, dim, kernel, stride=kernel)
        self.time_proj = nn.Linear(dim, 6 * dim)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class WanTrunk:
    """The forward pass through the first blocks; modules have their names in ``WanTransformer3DModel``."""

    config: Any
    noise_beside: NoiseBeside | None
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

    def trunk(
        self,
        latents: Tensor,
        sigma: Tensor,
        context: Tensor,
        rotary: tuple[Tensor, ...],
        velocity: Tensor | None = None,
    ) -> Tensor:
        """Output of the last block, shape ``(B, N, D)``, for noisy latents.

        With ``noise_beside`` it is that for the clean latents which ``velocity`` predicts, beside the noisy ones;
        without a velocity the latents are clean already.
        """
        sigma = sigma.expand(len(latents))
        if self.noise_beside is None:
            hidden: Tensor = self.patch_embedding(latents)
            modulation = self.condition_embedder.time_proj(self._time(sigma, hidden))
        else:
            clean = latents if velocity is None else clean_from(latents, velocity, sigma).to(latents.dtype)
            hidden = self.patch_embedding(clean) + self.noise_beside.patch_embedding(latents)
            modulation = self.condition_embedder.time_proj(self._time(torch.zeros_like(sigma), hidden))
            modulation = modulation + self.noise_beside.time_proj(self._time(sigma, hidden))
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()  # (B, N, D)
        modulation = modulation.unflatten(1, (6, -1))  # (B, 6, D)
        context = context.to(hidden.dtype).expand(len(latents), -1, -1)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden, context, modulation, rotary)
            else:
                hidden = block(hidden, context, modulation, rotary)
        return hidden

    def _time(self, sigma: Tensor, hidden: Tensor) -> Tensor:
        """Embed noise levels, shape ``(B, D)``, in the precision of ``hidden``."""
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(sigma * 1000)
        time = embedder.time_embedder(frequencies.to(next(embedder.time_embedder.parameters()).dtype))
        embedded: Tensor = embedder.act_fn(time.to(hidden.dtype))
        return embedded

    @property
    def needs_velocity(self) -> bool:
        """Whether it reads the clean latents that the velocity of the step predicts."""
        return self.noise_beside is not None

    def check_velocity(self, sigma: Tensor, velocity: Tensor | None) -> None:
        """Refuse noisy latents without the velocity that a prediction needs.

        Raises:
            ValueError: If there is noise, no velocity and it is needed.
        """
        if self.needs_velocity and velocity is None and bool((sigma > 0).any()):
            raise ValueError(
                "Expected `velocity` in the conditioning of a reward that reads the predicted clean latents, but got "
                f"none at sigma {float(sigma.max()):g}; pass that of the step, or clean latents at sigma 0."
            )

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
