"""Guide a sampling loop of your own: one call between classifier-free guidance and the step."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from diffusers import WanPipeline

import nrg_sampler
from nrg_sampler import Conditioning, LatentReward, guided_velocity
from nrg_sampler.video import enlarge, to_uint8, write_mp4

weights = Path(nrg_sampler.__file__).parent / "shapes" / "weights"
pipe = WanPipeline.from_pretrained(weights / "pipeline", dtype=torch.float32)
reward = LatentReward.from_pretrained(weights / "reward")

with torch.no_grad():
    prompt, empty = pipe.encode_prompt("a red circle moving right", "", max_sequence_length=32)
    generator = torch.Generator().manual_seed(0)
    channels = pipe.transformer.config.in_channels
    latents = pipe.prepare_latents(1, channels, 64, 64, 13, torch.float32, torch.device("cpu"), generator)
    pipe.scheduler.set_timesteps(20)

    for sigma, next_sigma in pairwise(pipe.scheduler.sigmas.tolist()):
        timestep = torch.tensor([1000 * sigma])
        conditional = pipe.transformer(latents, timestep, prompt, return_dict=False)[0]
        unconditional = pipe.transformer(latents, timestep, empty, return_dict=False)[0]
        velocity = unconditional + 4.0 * (conditional - unconditional)
        velocity = guided_velocity(latents, velocity, sigma, reward, Conditioning(prompt))  # the guidance
        latents = latents + (next_sigma - sigma) * velocity

    mean, std = (torch.tensor(pipe.vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    video = pipe.vae.decode(latents * std + mean).sample

frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
write_mp4(enlarge(to_uint8(frames)), Path("guided.mp4"), fps=8)
print("guided.mp4")
