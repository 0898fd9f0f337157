"""Guide an image model with a reward on pixels: two added lines, with FLUX.1; Stable Diffusion 3 works alike."""

from __future__ import annotations

import torch
from diffusers import FluxPipeline

from nrg_sampler import attach  # added


class Warmth:
    """How much redder than blue the picture is that the latents are on their way to."""

    axes = ("warmth",)
    needs_velocity = True

    def __init__(self, vae):
        self.vae = vae.requires_grad_(False)

    def __call__(self, latents, sigma, conditioning):
        clean = latents - sigma[:, None, None, None, None] * conditioning.velocity  # (B, C, 1, H, W)
        clean = clean[:, :, 0] / self.vae.config.scaling_factor + self.vae.config.shift_factor
        image = self.vae.decode(clean.to(self.vae.dtype)).sample.float()  # (B, 3, H, W)
        warmth = (image[:, 0] - image[:, 2]).mean(dim=(1, 2))
        return ((1 - sigma) * warmth)[:, None]  # (B, 1); fades out toward pure noise


pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")

with attach(pipe, Warmth(pipe.vae), scale=1e5) as trace:  # added; the gradient of a mean over pixels is small
    image = pipe("a lighthouse at dusk", num_inference_steps=20, generator=torch.Generator().manual_seed(0)).images[0]

print(trace)
image.save("warm.png")
