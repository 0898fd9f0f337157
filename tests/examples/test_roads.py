"""The four-line examples, one a family of pipelines, on tiny pipelines and tiny random rewards as published."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_named
import tiny_qwen
import torch
from tiny_text import built

from nrg_sampler.rewards import by_name
from nrg_sampler.rewards.named import load_named

PROMPT = "a red circle"
EXAMPLES = Path(__file__).parents[2] / "examples"
ROADS = {
    "wan_videoreward": ("Wan", "WanPipeline", ("videoreward",), ("VQ", "MQ", "TA")),
    "flux_pickscore_aesthetic": ("FLUX.1", "FluxPipeline", ("pickscore", "aesthetic"), ("preference", "VQ")),
    "sd3_hpsv2": ("Stable Diffusion 3", "StableDiffusion3Pipeline", ("hpsv2.1",), ("preference",)),
    "ltx_clipscore": ("LTX", "LTXPipeline", ("clipscore",), ("TA",)),
}


def image_vae() -> Any:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    options = {"block_out_channels": (4,) * 4, "latent_channels": 4, "norm_num_groups": 2, "shift_factor": 0.1}
    return diffusers.AutoencoderKL(**blocks, **options).eval()


@pytest.mark.filterwarnings("ignore:.*no standard deviation is published")
@pytest.mark.parametrize("name", ROADS)
def test_four_lines_guide(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, kind, rewards, axes = ROADS[name]
    pipe, settings = built(family)
    if family == "Stable Diffusion 3":
        pipe.register_modules(vae=image_vae())
    folders = {}
    for reward in rewards:
        (tmp_path / reward).mkdir()
        folders[reward] = (tiny_qwen if reward in tiny_qwen.NAMES else tiny_named).write(reward, tmp_path / reward)
    monkeypatch.setattr(getattr(diffusers, kind), "from_pretrained", lambda *args, **options: pipe)
    monkeypatch.setattr(
        by_name, "load_named", lambda reward, **options: load_named(f"{reward}:{folders[reward]}", **options)
    )
    monkeypatch.chdir(tmp_path)
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    lines = [node for node in ast.parse(source).body if not isinstance(node, (ast.Import, ast.ImportFrom))][1:]
    assert sum(2 if isinstance(line, ast.With) else 1 for line in lines) == 4
    call = {key: value for key, value in settings.items() if key not in ("output_type", "return_dict")}
    call["num_inference_steps"] = 3
    small = re.sub(r'pipe\("[^"]*", num_inference_steps=\d+\)', "pipe(PROMPT, **CALL, generator=SEED())", source)
    small = re.sub(r"with attach\(pipe, (.*)\):", r"with attach(pipe, \1, scale=1000, max_push=None) as trace:", small)
    names: dict[str, Any] = {"PROMPT": PROMPT, "CALL": call, "SEED": lambda: torch.Generator().manual_seed(0)}
    exec(compile(re.sub(r"\.to\(\s*\"cuda\"\s*\)", "", small), name, "exec"), names)
    assert names["trace"].axes == axes and names["trace"].summary()["guided"] > 0
    (guided,) = (names[output] for output in ("frames", "image") if output in names)
    plain = pipe(PROMPT, **call, generator=torch.Generator().manual_seed(0))
    unguided = plain.frames[0] if hasattr(plain, "frames") else plain.images[0]
    assert np.any(np.asarray(guided) != np.asarray(unguided))
    assert (tmp_path / "guided.mp4").is_file() or (tmp_path / "guided.png").is_file()
