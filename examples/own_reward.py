"""A reward of your own: brighter videos, without any training."""

from __future__ import annotations

import torch

from nrg_sampler import NRGFlowPipeline


class Brightness:
    """How far the latents lie in the direction from black to white."""

    axes = ("brightness",)

    def __init__(self, vae):
        black, white = (vae.encode(torch.full((1, 3, 1, 64, 64), tone)).latent_dist.mode() for tone in (-1.0, 1.0))
        direction = (white - black) / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
        self.direction = direction.mean(dim=(2, 3, 4), keepdim=True).detach()  # (1, C, 1, 1, 1)
        self.direction /= self.direction.square().sum()

    def __call__(self, latents, sigma, conditioning):
        brightness = (latents * self.direction).sum(dim=1).mean(dim=(1, 2, 3))  # black to white is 0 to 1
        return ((1 - sigma) * brightness)[:, None]  # (B, 1); fades out toward pure noise


pipe = NRGFlowPipeline.from_pretrained("shapes")
pipe = NRGFlowPipeline.from_pipe(pipe, Brightness(pipe.vae))
for scale in (0.0, 1e5):  # the gradient of a mean over thousands of numbers is small
    generator = torch.Generator().manual_seed(0)
    frames = pipe("a red circle moving right", reward_scale=scale, num_inference_steps=20, generator=generator).frames
    print(f"scale {scale:8.0f}: mean brightness {frames[0].mean():.3f}")
