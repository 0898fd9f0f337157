"""Guide LTX with CLIPScore: four lines, of which two are about the reward."""

import torch
from diffusers import LTXPipeline
from diffusers.utils import export_to_video

from nrg_sampler import attach

pipe = LTXPipeline.from_pretrained("Lightricks/LTX-Video", dtype=torch.bfloat16).to("cuda")
with attach(pipe, "clipscore"):
    frames = pipe("waves breaking on black rocks, seen from above", num_inference_steps=50).frames[0]
export_to_video(frames, "guided.mp4", fps=24)
