"""Train the video autoencoder: 8x8 pixels and two frames become one latent of 16 numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nrg_sampler.files import fingerprint
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.render import draw, pixel_grid, render
from nrg_sampler.shapes.scenes import HEIGHT, NUM_FRAMES, WIDTH, Prompt, sample_prompt, sample_scene
from nrg_sampler.shapes.train.convolutions import new_optimizers
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.start import start_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

Z_DIM = 16
PATCH = 4
CROP = 32
HOLD = 0.8
SMALL_STARS = 0.4  # share of the scenes that show one: their points are the finest thing there is, and learned last
ON_SHAPE = 0.85  # share of the crops that are cut where the shape is: elsewhere there is little to learn
KL_WEIGHT = 1e-5  # fifty times as much blurred the shapes: the noise it asks for drowns their corners


def new_vae() -> AutoencoderKLWan:
    """Build a small ``AutoencoderKLWan``: 8x in space (4 by patches, 2 by a stage), 2x in time."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=64,
        z_dim=Z_DIM,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        patch_size=PATCH,
        scale_factor_temporal=2,
        scale_factor_spatial=2 * PATCH,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )


def crops(seed: int, count: int) -> Tensor:
    """Render parts of random scenes, whole in time, ``(count, 3, T, CROP, CROP)`` in ``[-1, 1]``.

    Causal convolutions see every earlier frame, so a stretch of the clip would be another task than the clip.
    """
    rng = random.Random(seed)
    drawing = draw(
        [
            sample_scene(_small_star(rng) if rng.random() < SMALL_STARS else sample_prompt(rng), rng)
            for _ in range(count)
        ]
    )
    grids = []
    for place in drawing.center[:, rng.randrange(NUM_FRAMES)].tolist():
        if rng.random() < ON_SHAPE:
            left, top = (
                min(max(round(where * side + rng.uniform(-10, 10) - CROP / 2), 0), side - CROP)
                for where, side in zip(place, (WIDTH, HEIGHT), strict=True)
            )
        else:
            left, top = rng.randrange(WIDTH - CROP + 1), rng.randrange(HEIGHT - CROP + 1)
        grids.append(pixel_grid(CROP, CROP, top, left))
    return render(drawing, torch.stack(grids)) * 2 - 1


def _small_star(rng: random.Random) -> Prompt:
    """Draw a prompt of the training split until it is of a star, and make that small."""
    while (prompt := sample_prompt(rng)).shape != "star":
        pass
    return replace(prompt, size="small")


def whole_clips(seed: int, count: int) -> Tensor:
    """Render random scenes, ``(count, 3, T, H, W)`` in ``[-1, 1]``."""
    rng = random.Random(seed)
    return render(draw([sample_scene(sample_prompt(rng), rng) for _ in range(count)])) * 2 - 1


def train_vae(
    folder: Path,
    steps: int = 12000,
    batch: int = 8,
    seed: int = 0,
    device: str = "cpu",
    start: Path | None = None,
) -> Iterator[dict[str, float]]:
    """Train on rendered clips of the training split and save to ``folder/vae``; ``start`` is an earlier pipeline."""
    torch.manual_seed(seed)
    vae = new_vae()
    if start is not None:
        start_vae(vae, start)
    vae.to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pixels = crops(seed * 1_000_003 + step, batch).to(device)
        with fast_autocast(device):
            posterior = vae.encode(pixels).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator).to(device)
            # `_decode` clamps to [-1, 1], which would stop gradients there: decode chunk by chunk without it.
            decoded = decode_unclamped(vae, mean + (0.5 * logvar).exp() * noise)
        error = decoded.float() - pixels
        mse = error.pow(2).mean()
        kl = 0.5 * (mean.pow(2) + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * torch.log10(mse.detach() / 4)
        return 4 * mse + error.abs().mean() + KL_WEIGHT * kl, {"psnr": psnr.item(), "kl": kl.item()}

    about = {"batch": batch, "start": fingerprint(start) if start else ""}
    settings = LoopSettings(steps, warmup=200, hold=HOLD, ema=0.998, seed=seed, about=about)
    yield from fit(vae, loss, new_optimizers(vae, lr=1e-3), settings, folder / "vae.pt")
    measure_latents(vae, seed, device)
    vae.to("cpu").save_pretrained(folder / "vae")


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Decode as ``AutoencoderKLWan`` does, latent frame by latent frame, without its final clamp."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    hidden = vae.post_quant_conv(latents)
    frames = []
    for index in range(hidden.shape[2]):
        vae._conv_idx = [0]
        frames.append(
            vae.decoder(
                hidden[:, :, index : index + 1],
                feat_cache=vae._feat_map,
                feat_idx=vae._conv_idx,
                first_chunk=index == 0,
            )
        )
    vae.clear_cache()
    decoded: Tensor = unpatchify(torch.cat(frames, dim=2), patch_size=PATCH)
    return decoded


@torch.no_grad()
def measure_latents(vae: AutoencoderKLWan, seed: int, device: str) -> None:
    """Store each latent channel's mean and standard deviation in the config, where ``WanPipeline`` reads them."""
    latents = torch.cat(
        [vae.encode(whole_clips(-seed - index - 1, 32).to(device)).latent_dist.mode() for index in range(8)]
    )
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(),
        latents_std=latents.std(dim=(0, 2, 3, 4)).tolist(),
    )
