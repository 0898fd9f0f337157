"""A reward that diffusers can save and load as a component; diffusers finds it by the name of this module."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class TinyReward(ModelMixin, ConfigMixin):
    """Two axes: distance of the latents' mean to a learned number, and their spread."""

    axes = ("mean", "spread")
    mean = (0.0, 1.0)
    std = (0.5, 2.0)
    recommended_scale = 4.0

    @register_to_config
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.wanted = torch.nn.Parameter(torch.full((channels,), 0.5))

    def forward(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        alpha = (1 - sigma)[:, None]
        means = latents.mean(dim=(2, 3, 4))  # (B, C)
        closeness = -((means - alpha * self.wanted.float()) ** 2 * alpha).sum(dim=1)
        spread = alpha[:, 0] * latents.flatten(1).std(dim=1)
        return torch.stack([closeness, spread], dim=1)

    def check_compatible(self, pipe: Any) -> None:
        channels = pipe.transformer.config.in_channels
        if channels != self.config.channels:
            raise ValueError(f"Expected latents with {self.config.channels} channels, but got {channels}.")


class AnyLatents(TinyReward):
    """The same for latents of any family: one wanted mean for all channels."""

    @register_to_config
    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels)

    def check_compatible(self, pipe: Any) -> None:
        """Take every pipeline."""
