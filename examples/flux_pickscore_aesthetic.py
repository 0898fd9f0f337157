"""Guide FLUX.1 with PickScore and an aesthetic predictor: four lines, of which two are about the rewards."""

import torch
from diffusers import FluxPipeline

from nrg_sampler import attach

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16).to("cuda")
with attach(pipe, ["pickscore", "aesthetic"], weights="preference=1,VQ=1"):
    image = pipe("a lighthouse on a cliff, morning fog", num_inference_steps=28).images[0]
image.save("guided.png")
