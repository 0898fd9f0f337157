"""Make the picture at the top of the README: the same seeds unguided (first row of each pair) and guided (second)."""

from __future__ import annotations

from pathlib import Path

import torch

from nrg_sampler import NRGFlowPipeline
from nrg_sampler.video import enlarge, frame_strip, to_uint8, write_png

PROMPTS = {  # held-out combinations and a seed each
    "a red circle moving right on a striped background": 0,
}

pipe = NRGFlowPipeline.from_pretrained("shapes")
rows = []
for prompt, seed in PROMPTS.items():
    for scale in (0.0, 1.0):
        frames = pipe(prompt, reward_scale=scale, generator=torch.Generator().manual_seed(seed)).frames[0]
        rows.append(enlarge(to_uint8(frames), side=128))
write_png(frame_strip(rows, columns=7), Path(__file__).with_name("compare.png"))
