"""A stand-in for a pipeline whose clips are grey, and graded clips made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from nrg_sampler.evaluation.arm_sampler import ArmSampler
from nrg_sampler.evaluation.grading import Graded, grade_arms
from nrg_sampler.search import OTHER_CANDIDATE
from nrg_sampler.shapes.scenes import prompts


class FakePipe:
    """Returns grey clips and notes its calls; the oracle finds nothing in them."""

    _callback_tensor_inputs = ("latents", "prompt_embeds")
    reward_model = None

    def __init__(self):
        self.sampling_defaults = {"num_inference_steps": 10}
        self.calls = []
        self.transformer = torch.nn.Identity()

    def __call__(
        self, texts, generator, output_type, callback_on_step_end, callback_on_step_end_tensor_inputs, **options
    ):
        seeds = [g.initial_seed() for g in generator]
        self.calls.append((list(texts), seeds, options))
        latents = torch.tensor(seeds, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
        light = 0.5 + 0.1 * (latents // OTHER_CANDIDATE)  # further candidates are brighter
        for _ in range(2):
            self.transformer(latents)
        callback_on_step_end(self, 0, None, {"latents": latents, "prompt_embeds": torch.zeros(len(texts), 1, 1)})
        return SimpleNamespace(frames=light.expand(-1, 13, 3, 64, 64))


def grades_of(pipe, arms, count, file, batch=10, **options):
    return grade_arms(ArmSampler(pipe), arms, prompts("test")[:count], file, batch, **options)


def brightness(clips, asked):
    return clips.mean(dim=(1, 2, 3, 4))[:, None].expand(-1, 3)


def clip(
    arm: str, index: int, grades: tuple[float, ...], target: float, motion: float, seconds: float = 1.0
) -> Graded:
    further = {**{f"target_{axis}": target for axis in ("VQ", "MQ", "TA")}, "motion": motion, "evaluations": 10.0}
    return Graded(arm, index, "a red circle", index, grades, seconds, further)
