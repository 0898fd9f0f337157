"""Guide Wan with VideoReward: four lines, of which two are about the reward."""

import torch
from diffusers import WanPipeline
from diffusers.utils import export_to_video

from nrg_sampler import attach

pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", dtype=torch.bfloat16).to("cuda")
with attach(pipe, "videoreward", weights="VQ=1,MQ=1,TA=1", frames="every:2", fps=16):
    frames = pipe("a red balloon rising over a quiet harbour at dusk", num_inference_steps=50).frames[0]
export_to_video(frames, "guided.mp4", fps=16)
