"""Show how much of what a prompt leaves open guidance decides: the distance between clips of many seeds.

A prompt that names no background leaves it to the seed. Distances are means over pairs of seeds, over those of the
unguided clips of the same seeds; 1 means as different as without guidance.
"""

from __future__ import annotations

import torch

from nrg_sampler import NRGFlowPipeline, RewardGuidance
from nrg_sampler.evaluation.features import diversity

PROMPTS = ("a red circle moving right", "a green star moving up", "a blue ring growing", "a yellow square moving left")
SEEDS = 32
SETTINGS = {
    "unguided": RewardGuidance(scale=0),
    "guided": RewardGuidance.preset("best"),
    "lookahead=0.1": RewardGuidance.preset("best", lookahead=0.1),
    "max_push=0.3": RewardGuidance.preset("best", max_push=0.3),
    "start=0.1": RewardGuidance.preset("best", start=0.1),
}

pipe = NRGFlowPipeline.from_pretrained("shapes")
pipe.set_progress_bar_config(disable=True)
for prompt in PROMPTS:
    distances = {}
    for name, guidance in SETTINGS.items():
        generator = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
        output = pipe([prompt] * SEEDS, reward_guidance=guidance, output_type="pt", generator=generator)
        distances[name] = diversity(output.frames.transpose(1, 2))  # from (B, T, C, H, W)
    ratios = (f"{name} {distance / distances['unguided']:.2f}" for name, distance in distances.items())
    print(f"{prompt}: {', '.join(ratios)}", flush=True)
