"""Guide Stable Diffusion 3 with HPSv2: four lines, of which two are about the reward."""

import torch
from diffusers import StableDiffusion3Pipeline

from nrg_sampler import attach

pipe = StableDiffusion3Pipeline.from_pretrained("stabilityai/stable-diffusion-3.5-medium", dtype=torch.bfloat16).to(
    "cuda"
)
with attach(pipe, "hpsv2.1"):
    image = pipe("a tin robot watering sunflowers", num_inference_steps=28).images[0]
image.save("guided.png")
