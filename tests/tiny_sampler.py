"""A stand-in for the sampler of the command line, so that every path runs in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nrg_sampler import cli
from nrg_sampler.judges.base import Judge
from nrg_sampler.runs import recipe, sampler
from nrg_sampler.runs.manifest import Clip
from nrg_sampler.video import Frames

MODEL = ["--model", "any/model"]


class FakeSampler(sampler.Sampler):
    """Draw noise instead of sampling; ``scale`` decides the brightness, so that guidance can be seen."""

    interrupt_at: int | None = None
    machine = "this one"

    def __init__(self, what: recipe.Recipe, judges: Mapping[str, Judge] | None = None) -> None:
        self.recipe, self.judges = what, judges or {}
        self.pipe = type("Pipe", (), {"sampling_defaults": {"num_inference_steps": 4}})
        self.fps = 16.0
        self.fingerprints = {"model": self.machine}

    def sample(self, seed: int, guided: bool = True, on_step: Any = None) -> tuple[Frames, Clip]:
        if seed == self.interrupt_at:
            raise KeyboardInterrupt
        scale = self.recipe.guidance.scale if guided else 0.0
        noise = np.random.default_rng([seed, *self.machine.encode()]).integers(0, 99, (3, 16, 16, 3), dtype=np.uint8)
        scores = {"reward": {"VQ": 0.1 + scale, "TA": 0.25 - 0.1 * scale}}
        trace = [{"step_index": 0, "sigma": 0.9, "push_ratio": 0.1}] if scale else []
        frames = noise + np.uint8(10 * scale)
        return frames, Clip.of(sampler.clip_name(guided), frames, 0.5, scores=scores, trace=trace)


def run(*argv: str) -> int:
    return cli.main([str(word) for word in argv])
