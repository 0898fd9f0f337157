"""The nodes on a stand-in for ComfyUI; `test_inside.py` runs them in ComfyUI itself where it is at hand."""

from __future__ import annotations

import asyncio
import itertools
import json
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from tiny_comfyui import PACKAGE, WORKFLOWS, LatentFormat, Model, as_prompt, load_package
from tiny_families.base import rand
from torch import Tensor, nn

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, guided_velocity
from nrg_sampler.hosts.comfyui import in_space_of, place

SIGMAS = [1.0, 0.8, 0.5, 0.2, 0.0]


class Decoder(nn.Module):
    """Colours of three channels, each pixel of the latents one of the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(4, 3, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return self.convolution(latents)


@pytest.fixture
def vae() -> Any:
    """As ComfyUI's loader makes it, in inference mode."""
    torch.manual_seed(0)
    with torch.inference_mode():
        decoder = Decoder()
    return types.SimpleNamespace(
        first_stage_model=decoder, latent_channels=4, process_output=lambda frames: (frames / 2 + 0.5).clamp(0, 1)
    )


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    extension = asyncio.run(load_package(monkeypatch).comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    return {node.define_schema().kwargs["node_id"]: node for node in found}


@pytest.fixture
def latent(tmp_path: Path) -> LatentReward:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 16, "text_dim": 16}
    reward = LatentReward(num_blocks=1, in_channels=4, rope_max_seq_len=32, recommended_scale=50.0, **sizes)
    reward.save_pretrained(tmp_path / "reward")
    return reward


def guide(nodes: dict[str, Any], model: Model, reward: Any, **inputs: Any) -> Model:
    given = {"text": "", "scale": 1.0, "weights": "", "preset": "best", **inputs}
    (guided,) = nodes["NRGRewardGuidance"].execute(model=model, reward=reward, **given).args
    return guided


def test_a_latent_reward_guides_inside_inference_mode(nodes: dict[str, Any], latent: Any, tmp_path: Path) -> None:
    prompt, model = rand(1, 5, 16), Model()
    with torch.inference_mode():
        (reward,) = nodes["NRGReward"].execute(str(tmp_path / "reward")).args
        guided = guide(nodes, model, reward, positive=[[prompt, {}]], weights="1:1:1")
        latents = rand(2, 4, 2, 4, 4)
        sample, unguided = guided.sample(latents, SIGMAS), model.sample(latents, SIGMAS)
        assert torch.equal(
            guide(nodes, model, reward, positive=[[prompt, {}]], scale=0).sample(latents, SIGMAS), unguided
        )
    assert model.post_cfg == [] and not torch.equal(sample, unguided)
    expected = rand(2, 4, 2, 4, 4)
    settings = RewardGuidance.preset("best", weights="1:1:1")
    for sigma, following in itertools.pairwise(SIGMAS):
        conditioning = Conditioning(prompt.expand(2, -1, -1))
        velocity = guided_velocity(expected, torch.sin(expected), sigma, latent, conditioning, settings)
        expected = expected + (following - sigma) * velocity
    torch.testing.assert_close(sample, expected, atol=1e-4, rtol=1e-4)


def test_a_reward_on_frames_sees_what_the_vae_decodes_and_rises(
    nodes: dict[str, Any], vae: Any, tmp_path: Path
) -> None:
    name, model = f"clipscore:{tiny_named.write('clipscore', tmp_path)}", Model()
    with torch.inference_mode():
        (reward,) = nodes["NRGReward"].execute(name, vae).args
        guided = guide(nodes, model, reward, text="a red circle", scale=300.0, preset="balanced")
        latents = rand(1, 4, 2, 32, 28)
        scores = []
        for each in (model, guided):
            sample = each.sample(latents, SIGMAS)
            frames = vae.process_output(vae.first_stage_model.decode(LatentFormat().process_out(sample)))
            seen = in_space_of(reward, LatentFormat()).frames(sample)
            torch.testing.assert_close(seen, frames, atol=1e-5, rtol=0)
            judged = nodes["NRGJudge"].execute(frames[0].movedim(0, -1), name, "a red circle", True, 8.0)
            scores.append(judged.args[1])
    assert scores[1] > scores[0]
    assert judged.args[0] == f"TA {scores[1]:.4g}"
    with torch.inference_mode():
        pictures = nodes["NRGJudge"].execute(frames[0].movedim(0, -1), name, "a red circle", False, 8.0)
    assert pictures.args[0].count("TA") == 2
    assert pictures.args[1] == pytest.approx(scores[1], abs=1e-4)


def test_what_is_missing_is_said_before_anything_is_sampled(
    nodes: dict[str, Any], vae: Any, latent: Any, tmp_path: Path
) -> None:
    name = f"clipscore:{tiny_named.write('clipscore', tmp_path)}"
    with pytest.raises(ValueError, match="connect the VAE of the model to `vae`"):
        nodes["NRGReward"].execute(name)
    with pytest.raises(ValueError, match="did you mean 'pickscore'"):
        nodes["NRGReward"].execute("pickscor", vae)
    (reward,) = nodes["NRGReward"].execute(name, vae).args
    with pytest.raises(ValueError, match="write it into `text`"):
        guide(nodes, Model(), reward)
    with pytest.raises(ValueError, match="connect it to `positive`"):
        guide(nodes, Model(), latent)
    with pytest.raises(ValueError, match="rectified flow, such as Wan, FLUX or SD3, but object is none"):
        guide(nodes, Model(object()), reward, text="a")
    model = Model()
    model.objects["latent_format"].latent_channels = 16
    with pytest.raises(ValueError, match="whose latents have 16 channels, but got one with 4"):
        guide(nodes, model, reward, text="a")
    with pytest.raises(ValueError, match="4 latent channels, as this reward was trained on, but the model has 16"):
        guide(nodes, model, latent, positive=[[rand(1, 5, 16), {}]])


@pytest.mark.parametrize("fits", [True, False])
def test_a_latent_reward_is_for_latents_normalised_alike(nodes: dict[str, Any], latent: Any, fits: bool) -> None:
    own = LatentFormat()
    space = {"latents_mean": own.mean.flatten().tolist(), "latents_std": own.std.flatten().tolist()}
    latent.register_to_config(latent_space=space if fits else {"scaling_factor": 0.5})
    if fits:
        guide(nodes, Model(), latent, positive=[[rand(1, 5, 16), {}]])
        return
    with pytest.raises(ValueError, match="normalised as those that this reward was trained on"):
        guide(nodes, Model(), latent, positive=[[rand(1, 5, 16), {}]])


def test_an_evaluation_between_two_levels_belongs_to_the_step_before() -> None:
    found = [place(torch.tensor([sigma]), SIGMAS)[0] for sigma in (1.0, 0.9, 0.8, 0.65, 0.5, 0.2, 0.1)]
    assert found == [0, 0, 1, 1, 2, 3, 3]
    assert place(torch.tensor([1.0]), SIGMAS)[1] == 4


def test_every_input_has_a_tooltip(nodes: dict[str, Any]) -> None:
    schemas = {name: node.define_schema().kwargs for name, node in nodes.items()}
    assert [schema["display_name"] for schema in schemas.values()] == ["Reward (by name)", "Reward guidance", "Judge"]
    for schema in schemas.values():
        assert schema["description"]
        assert all(given.kwargs["tooltip"] for given in schema["inputs"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_whole(nodes: dict[str, Any], workflow: Path) -> None:
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    by_id = {node["id"]: node for node in graph["nodes"]}
    for link, source, slot, target, place_, kind in graph["links"]:
        output, given = by_id[source]["outputs"][slot], by_id[target]["inputs"][place_]
        assert link in output["links"] and given["link"] == link and kind in (output["type"], given["type"])
    kinds = {node["class_type"]: node["inputs"] for node in as_prompt(workflow).values()}
    assert set(nodes) <= set(kinds)
    for name, node in nodes.items():
        declared = [given.args[0] for given in node.define_schema().kwargs["inputs"]]
        optional = {given.args[0] for given in node.define_schema().kwargs["inputs"] if given.kwargs.get("optional")}
        assert set(declared) - optional <= set(kinds[name]) <= set(declared)


def test_there_are_two_workflows() -> None:
    assert len(WORKFLOWS) == 2


def test_the_package_says_to_the_registry_what_it_is() -> None:
    own = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    whole = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert own["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName"}
    assert own["project"]["version"] == whole["project"]["version"]
    requirements = (PACKAGE / "requirements.txt").read_text(encoding="utf-8").split("\n")
    assert own["project"]["dependencies"] == [line for line in requirements if line]
