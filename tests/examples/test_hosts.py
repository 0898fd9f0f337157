"""The examples for hosts too large for a test: FLUX on a tiny pipeline, ComfyUI on a stand-in of its interface."""

from __future__ import annotations

import asyncio
import copy
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families.base import rand
from tiny_families.full import full_flux

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, **replaced: str) -> dict[str, Any]:
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(source, name, "exec"), names)
    return names


def test_an_image_model_is_guided_by_a_reward_on_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    full_flux().save_pretrained("flux")
    small = {"black-forest-labs/FLUX.1-dev": "flux", "torch.bfloat16": "torch.float32"}
    names = run_example(
        "guide_flux", **small, **{"num_inference_steps=20": "num_inference_steps=3, height=32, width=48"}
    )
    assert (tmp_path / "warm.png").is_file()
    assert "warmth" in capsys.readouterr().out
    assert names["trace"].summary()["guided"] == 2
    unguided = names["pipe"](
        "a lighthouse at dusk", num_inference_steps=3, height=32, width=48, generator=torch.Generator().manual_seed(0)
    ).images[0]
    red, _, blue = np.mean(np.subtract(names["image"], unguided, dtype=float), axis=(0, 1))
    assert red > blue
    assert (EXAMPLES / "guide_flux.py").read_text(encoding="utf-8").count("# added") == 2


class Anything:
    """Whatever is asked of the interface's declarations: they only have to be made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs

    Input = Output = classmethod(lambda cls, *args, **kwargs: cls(*args, **kwargs))


class Model:
    """What of ComfyUI's ModelPatcher the node uses, and an Euler sampler of a flow model around it."""

    def __init__(self) -> None:
        self.post_cfg: list[Any] = []

    def clone(self) -> Model:
        cloned = copy.copy(self)
        cloned.post_cfg = list(self.post_cfg)
        return cloned

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.post_cfg.append(function)

    def sample(self, latents: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
        for sigma, following in itertools.pairwise(sigmas):
            level = torch.full((len(latents),), sigma)
            denoised = latents - sigma * torch.sin(latents)
            for function in self.post_cfg:
                denoised = function({"input": latents, "denoised": denoised, "sigma": level})
            latents = latents + (following - sigma) * (latents - denoised) / sigma
        return latents


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    declarations = {name: type(name, (Anything,), {}) for name in ("Model", "Conditioning", "String", "Float")}
    io = types.SimpleNamespace(ComfyNode=object, Schema=Anything, NodeOutput=Anything, **declarations)
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)


def test_the_comfyui_node_guides_inside_inference_mode(comfy: None, tmp_path: Path) -> None:
    from nrg_sampler import Conditioning, LatentReward, RewardGuidance, guided_velocity

    torch.manual_seed(0)
    reward = LatentReward(
        num_blocks=1,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        rope_max_seq_len=32,
        recommended_scale=50.0,
    )
    reward.save_pretrained(tmp_path)
    names = run_example("comfyui_node")
    extension = asyncio.run(names["comfy_entrypoint"]())
    (node,) = asyncio.run(extension.get_node_list())
    inputs = [declared.args[0] for declared in node.define_schema().kwargs["inputs"]]
    assert inputs == ["model", "positive", "reward", "weights", "scale"]

    sigmas, prompt = [1.0, 0.8, 0.5, 0.2, 0.0], rand(1, 5, 16)
    model = Model()
    with torch.inference_mode():
        latents = rand(2, 4, 2, 4, 4)
        (patched,) = node.execute(model, [[prompt, {}]], str(tmp_path), "1:1:1", 1.0).args
        guided, unguided = patched.sample(latents, sigmas), model.sample(latents, sigmas)
    assert not torch.equal(guided, unguided)
    assert model.post_cfg == []

    loaded, expected = LatentReward.from_pretrained(tmp_path), rand(2, 4, 2, 4, 4)
    for sigma, following in itertools.pairwise(sigmas):
        conditioning = Conditioning(prompt.expand(2, -1, -1))
        velocity = torch.sin(expected)
        velocity = guided_velocity(expected, velocity, sigma, loaded, conditioning, RewardGuidance(weights="1:1:1"))
        expected = expected + (following - sigma) * velocity
    torch.testing.assert_close(guided, expected, atol=1e-4, rtol=1e-4)
