"""What the tests of the page share: a tiny model on disk, a studio that serves it, and a request for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.ui.engine import Engine, Model
from nrg_sampler.ui.handlers import Studio
from nrg_sampler.ui.visits import Visits

SIZE = {"height": 16, "width": 16, "num_frames": 3, "max_sequence_length": 8, "num_inference_steps": 4, "fps": 8}
REQUEST = {"prompt": "a red circle", "weights": "1:1:1", "strength": 1.0, "steps": 4, "cfg": 4.0, "seed": 0}


def save_model(components: dict[str, Any], root: Path) -> Model:
    """Write a tiny pipeline and a reward with the axes VQ, MQ and TA."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    from nrg_sampler import LatentReward

    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(root / "wan")
    (root / "wan" / "sampling.json").write_text(json.dumps(SIZE))
    torch.manual_seed(0)
    LatentReward.from_transformer(components["transformer"], num_blocks=1).save_pretrained(root / "reward")
    return Model(str(root / "wan"), str(root / "reward"))


def studio_of(model: Model, root: Path, *more: Model) -> Studio:
    engine = Engine((model, *more), device="cpu")
    return Studio(engine, Visits(root, engine))


def request(studio: Studio, **changes: Any) -> dict[str, Any]:
    """Return what the page would send for the first model."""
    return {**REQUEST, "model": next(iter(studio.engine.models)), **changes}
