"""Make the picture at the top of the README: four held-out prompts, each unguided (upper row) and guided (lower row).

They are the first four of the test split with the seeds of the tables, not picked by their outcome.
"""

from __future__ import annotations

from pathlib import Path

import torch

from nrg_sampler import NRGFlowPipeline, RewardGuidance
from nrg_sampler.shapes.scenes import caption, prompts
from nrg_sampler.video import enlarge, frame_strip, to_uint8, write_png

pipe = NRGFlowPipeline.from_pretrained("shapes")
rows = []
for seed, prompt in enumerate(prompts("test")[:4]):
    print(f"seed {seed}: {caption(prompt)}")
    for scale in (0.0, 1.0):
        generator = torch.Generator().manual_seed(seed)
        guidance = RewardGuidance.preset("best", scale=scale)
        frames = pipe(caption(prompt), reward_guidance=guidance, generator=generator).frames[0]
        rows.append(enlarge(to_uint8(frames), side=128))
write_png(frame_strip(rows, columns=7), Path(__file__).parents[1] / "docs" / "images" / "compare.png")
