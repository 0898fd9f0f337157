"""Pools of clips with measured quality, from which preference pairs are drawn and labelled by the oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nrg_sampler.files import replacing
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import guided_velocity
from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.rewards.latent_space import denormalised
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.oracle import ClipMeasurement, measure
from nrg_sampler.shapes.scenes import caption, prompts, sample_prompt
from nrg_sampler.shapes.train.degrade import degraded_clip, faultless_clip
from nrg_sampler.shapes.train.origin import is_made, models_in, note_origin
from nrg_sampler.shapes.train.train_base import encode_clips, fixed_length
from nrg_sampler.shapes.train.train_text import CHOICES, attribute_labels, encode_text

if TYPE_CHECKING:
    from diffusers import WanPipeline

    from nrg_sampler.rewards.latent import LatentReward

LATENT_SHAPE = (16, 7, 8, 8)  # of 13 frames of 64x64
GUIDED_WEIGHTS = ("1:1:1", "1:0:0", "0:1:0", "0:0:1", "0.1:0.1:0.8")
GUIDED_SCALES = (1.0, 3.0, 10.0)
GROUP = 4  # clips that are compared under one prompt and one noise: six pairs for four forward passes


@dataclass
class Pool:
    """Clips as latents, with the prompt each was made for and the oracle's measurements of its decoded pixels.

    Args:
        latents: Normalised latents, shape ``(N, C, T, H, W)``.
        labels: Attribute indices of each prompt (one past the last for "left open"), shape ``(N, 5)``.
        group: Clips of one group were made for the same prompt, shape ``(N,)``.
        quality: VQ, MQ and visibility, shape ``(N, 3)``.
        tables: How well each value of each attribute fits, side by side, shape ``(N, values)``.
    """

    latents: Tensor
    labels: Tensor
    group: Tensor
    quality: Tensor
    tables: Tensor

    def save(self, file: Path) -> None:
        """Write the pool to a safetensors file, whole or not at all."""
        with replacing(file) as partial:
            save_file({name: value.contiguous() for name, value in vars(self).items()}, partial)

    @classmethod
    def load(cls, *files: Path) -> Pool:
        """Read one or more pools as one."""
        parts: dict[str, list[Tensor]] = {}
        groups = 0
        for file in files:
            with safe_open(file, framework="pt") as stored:
                names: list[str] = list(stored.keys())
                for name in names:
                    value = stored.get_tensor(name)
                    parts.setdefault(name, []).append(value + groups if name == "group" else value)
            groups = int(parts["group"][-1].max()) + 1
        return cls(**{name: torch.cat(values) for name, values in parts.items()})


def measured(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Measure oracle quality ``(N, 3)`` and attribute tables ``(N, values)`` of clips in ``[0, 1]``."""
    measurement: ClipMeasurement = measure(clips)
    quality = torch.stack([measurement.visual_quality, measurement.motion_quality, measurement.visible], dim=1)
    return quality, torch.cat([measurement.attributes[name] for name in CHOICES], dim=1)


def rendered_pool(
    pipe: WanPipeline, count: int, split: str, seed: int, file: Path, faults: bool = True
) -> Iterator[int]:
    """Render clips, pass them through the autoencoder, measure what comes out; yields how many are done."""
    rng = random.Random(f"{'faults' if faults else 'faultless'}/{split}/{seed}")
    new_clip = degraded_clip if faults else faultless_clip
    chosen = [sample_prompt(rng, split) for _ in range(count)]
    parts = []
    for start in range(0, count, 32):
        batch = chosen[start : start + 32]
        latents = encode_clips(pipe.vae, torch.cat([new_clip(prompt, rng) for prompt in batch]))
        parts.append((latents.half(), *measured(decode_latents(pipe, latents))))
        yield start + len(batch)
    latents, quality, tables = (torch.cat(column) for column in zip(*parts, strict=True))
    Pool(latents, attribute_labels(chosen), torch.arange(count), quality, tables).save(file)


def sampled_pool(
    pipe: WanPipeline,
    count: int,
    per_prompt: int,
    split: str,
    seed: int,
    file: Path,
    batch: int = 32,
    reward: Reward | None = None,
) -> Iterator[int]:
    """Sample clips from the base model at various settings and measure them; yields how many are done.

    With a reward the samples are guided, at various weights and up to strengths that over-optimise it: a reward that
    was trained on such clips is harder to over-optimise.
    """
    rng = random.Random(f"{'guided' if reward else 'samples'}/{split}/{seed}")
    groups = -(-count // per_prompt)
    wanted = [sample_prompt(rng, split) for _ in range(groups)] if split == "train" else prompts(split)[:groups]
    parts, labels, owner = [], [], []
    for start in range(0, groups, batch // per_prompt):
        chunk = wanted[start : start + batch // per_prompt]
        chosen = [prompt for prompt in chunk for _ in range(per_prompt)]
        latents = sample_latents(
            pipe,
            [caption(prompt, rng) for prompt in chosen],
            steps=rng.choice((10, 15, 25)),
            guidance_scale=rng.choice((1.0, 2.5, 4.0, 6.0)),
            generator=torch.Generator().manual_seed(rng.randrange(2**31)),
            reward=reward,
            guidance=RewardGuidance.preset(
                "best", weights=rng.choice(GUIDED_WEIGHTS), scale=rng.choice(GUIDED_SCALES)
            ),
        )
        parts.append((latents.half(), *measured(decode_latents(pipe, latents))))
        labels += chosen
        owner += [start + index for index in range(len(chunk)) for _ in range(per_prompt)]
        yield len(labels)
    latents, quality, tables = (torch.cat(column) for column in zip(*parts, strict=True))
    Pool(latents, attribute_labels(labels), torch.tensor(owner), quality, tables).save(file)


@torch.no_grad()
def sample_latents(
    pipe: WanPipeline,
    captions: list[str],
    steps: int,
    guidance_scale: float,
    generator: torch.Generator,
    reward: Reward | None = None,
    guidance: RewardGuidance | None = None,
) -> Tensor:
    """Sample final latents, one a caption, in the arithmetic that is fast there; guided if there is a reward."""
    device = pipe.transformer.device
    embeds, mask = encode_text(pipe.tokenizer, pipe.text_encoder, captions + [""] * len(captions))
    embeds, mask = fixed_length(embeds, mask, 32)
    conditioning = Conditioning(*(part[: len(captions)] for part in (embeds, mask)))
    pipe.scheduler.set_timesteps(steps, device="cpu")
    latents = torch.randn(len(captions), *LATENT_SHAPE, generator=generator).to(device)
    with fast_autocast(device):
        for sigma, sigma_next in pairwise(pipe.scheduler.sigmas.tolist()):
            timestep = torch.full((len(embeds),), 1000 * sigma, device=device)
            both = pipe.transformer(latents.repeat(2, 1, 1, 1, 1), timestep, embeds, return_dict=False)[0].float()
            positive, negative = both.chunk(2)
            velocity = negative + guidance_scale * (positive - negative)
            if reward is not None:
                velocity = guided_velocity(latents, velocity, sigma, reward, conditioning, guidance)
            latents = latents + (sigma_next - sigma) * velocity
    return latents


@torch.no_grad()
def decode_latents(pipe: WanPipeline, latents: Tensor) -> Tensor:
    """Decode normalised latents to clips in ``[0, 1]``."""
    with fast_autocast(latents.device):
        clips = pipe.vae.decode(denormalised(pipe.vae, latents)).sample
    pixels: Tensor = clips.float() / 2 + 0.5
    return pixels.clamp(0, 1)


def prepare_pools(
    folder: Path,
    pipe: WanPipeline,
    seed: int,
    counts: Mapping[str, int],
    guides: Mapping[str, LatentReward],
    held_out: Mapping[str, int],
) -> Iterator[dict[str, float]]:
    """Make the training and held-out pools that are not there yet: ``rendered`` or ``faultless`` clips, and samples.

    Samples of the kinds in ``guides`` are guided by those rewards. Kinds that are not held out have their own seed.
    """
    planned = [("train", kind, count) for kind, count in counts.items()]
    planned += [("validation", kind, count) for kind, count in held_out.items() if kind in counts]
    for split, kind, count in planned:
        file = folder / f"pool-{kind}-{split}.safetensors"
        origin = models_in(folder, "vae", "transformer")
        if is_made(file, origin):
            continue
        if kind in ("rendered", "faultless"):
            run = rendered_pool(pipe, count, split, seed, file, faults=kind == "rendered")
        else:
            own_seed = seed + (kind not in held_out)
            run = sampled_pool(pipe, count, GROUP, split, own_seed, file, reward=guides.get(kind))
        for done in run:
            yield {"step": 0, kind: done}
        note_origin(file, origin)
