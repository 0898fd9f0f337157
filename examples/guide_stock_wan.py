"""Guide a stock diffusers pipeline: two added lines. Here it is the bundled small model; any Wan folder works."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanPipeline

import nrg_sampler
from nrg_sampler import LatentReward, attach  # added
from nrg_sampler.video import enlarge, to_uint8, write_mp4

weights = Path(nrg_sampler.__file__).parent / "shapes" / "weights"
pipe = WanPipeline.from_pretrained(weights / "pipeline", dtype=torch.float32)
reward = LatentReward.from_pretrained(weights / "reward")

with attach(pipe, reward, weights="0:0:1") as trace:  # added
    frames = pipe(
        "a red circle moving right",
        height=64,
        width=64,
        num_frames=13,
        num_inference_steps=20,
        guidance_scale=4.0,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
    ).frames[0]

print(trace)
write_mp4(enlarge(to_uint8(frames)), Path("guided.mp4"), fps=8)
