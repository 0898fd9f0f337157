"""The nodes inside ComfyUI itself, on tiny random models, where its folder is named by the variable COMFYUI."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from tiny_comfyui import PACKAGE, WORKFLOWS, as_prompt
from tiny_families.base import rand
from torch import Tensor

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, guided_velocity
from nrg_sampler.hosts.comfyui import check_space, in_space_of
from nrg_sampler.rewards.latent_space import LATENT_OPTIONS

FOLDER = os.environ.get("COMFYUI", "")
PROMPT = "a red circle"
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="needs COMFYUI, the folder of ComfyUI with its packages installed"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def nodes() -> Any:
    """ComfyUI's own registry of nodes, with ours in it."""
    if FOLDER not in sys.path:
        sys.path.insert(0, FOLDER)
    import comfy.options  # noqa: F401
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(PACKAGE)))
    return nodes


@pytest.fixture(autouse=True)
def as_comfyui_runs_nodes(nodes: Any) -> Any:
    with torch.inference_mode():
        yield


def execute(nodes: Any, node: str, /, **inputs: Any) -> Any:
    return nodes.NODE_CLASS_MAPPINGS[node].execute(**inputs).args


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """Give weights to a model, which ComfyUI makes without any."""
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def patcher(model: torch.nn.Module) -> Any:
    from comfy.model_patcher import ModelPatcher

    cpu = torch.device("cpu")
    return ModelPatcher(filled(model), load_device=cpu, offload_device=cpu)


@pytest.fixture
def wan(nodes: Any) -> Any:
    from comfy import model_base, supported_models

    sizes = {"dim": 24, "ffn_dim": 16, "freq_dim": 16, "text_dim": 16, "num_heads": 2, "num_layers": 1}
    config = supported_models.WAN21_T2V({**sizes, "image_model": "wan2.1", "model_type": "t2v", "in_dim": 16})
    return patcher(model_base.WAN21(config))


@pytest.fixture
def wan_vae(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    import comfy.ldm.wan.vae
    import comfy.sd

    whole = comfy.ldm.wan.vae.WanVAE
    monkeypatch.setattr(comfy.ldm.wan.vae, "WanVAE", lambda **options: whole(**{**options, "dim": 4}))
    small = filled(comfy.ldm.wan.vae.WanVAE(z_dim=16, temperal_downsample=[False, True, True]))
    return comfy.sd.VAE(sd=small.state_dict(), dtype=torch.float32)


@pytest.fixture
def flux(nodes: Any) -> Any:
    from comfy import model_base, supported_models

    sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "context_in_dim": 16, "hidden_size": 24}
    shape = {"mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [4, 4, 4]}
    other = {"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True, "image_model": "flux"}
    return patcher(model_base.Flux(supported_models.Flux({**sizes, **shape, **other})))


@pytest.fixture
def flux_vae(nodes: Any) -> Any:
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    kind = "comfy.ldm.modules.diffusionmodules.model."
    sizes = {"double_z": True, "z_channels": 16, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32}
    options = {**sizes, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    regular = {"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"}
    parts = {
        f"{part}_config": {"target": f"{kind}{part.title()}", "params": options} for part in ("encoder", "decoder")
    }
    small = filled(AutoencodingEngine(regularizer_config=regular, **parts))
    vae = comfy.sd.VAE.__new__(comfy.sd.VAE)
    vae.__dict__ |= {"first_stage_model": small, "latent_channels": 16, "device": torch.device("cpu")}
    vae.process_output = lambda image: torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0)
    return vae


def sample(model: Any, positive: Any, latents: Tensor, sampler: str = "euler", cfg: float = 3.0) -> Tensor:
    """Latents as the wire between the sampler and the VAE has them."""
    import comfy.sample

    noise = comfy.sample.prepare_noise(latents, 0)
    negative = [[torch.zeros_like(positive[0][0]), dict(positive[0][1])]]
    options = {"disable_pbar": True, "seed": 0, "denoise": 1.0}
    return comfy.sample.sample(model, noise, 6, cfg, sampler, "simple", positive, negative, latents, **options)


def latent_reward(folder: Path, channels: int = 16) -> LatentReward:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 16, "text_dim": 16}
    with torch.inference_mode(False):
        reward = LatentReward(num_blocks=1, in_channels=channels, rope_max_seq_len=32, recommended_scale=50.0, **sizes)
        reward.save_pretrained(folder)
    return reward


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("pickscore", "clipscore", "aesthetic")
    return {name: tiny_named.write(name, tmp_path_factory.mktemp(name)) for name in names}


def test_the_nodes_are_registered_and_every_input_has_a_tooltip(nodes: Any) -> None:
    for name in ("NRGReward", "NRGRewardGuidance", "NRGJudge"):
        node = nodes.NODE_CLASS_MAPPINGS[name]
        inputs = itertools.chain(*(node.INPUT_TYPES().get(part, {}).items() for part in ("required", "optional")))
        assert [key for key, (_, options) in inputs if not options.get("tooltip")] == []
    titles = [nodes.NODE_DISPLAY_NAME_MAPPINGS[f"NRG{name}"] for name in ("Reward", "RewardGuidance", "Judge")]
    assert titles == ["Reward (by name)", "Reward guidance", "Judge"]


def test_the_registry_reads_the_package(nodes: Any) -> None:
    from comfy_config.config_parser import extract_node_configuration

    config = extract_node_configuration(str(PACKAGE))
    assert (config.project.name, config.tool_comfy.publisher_id) == ("nrg-sampler", "nrg-sampler")
    assert config.tool_comfy.display_name and config.project.license.text == "Apache-2.0"


def test_a_latent_reward_guides_wan_by_the_formula(nodes: Any, wan: Any, tmp_path: Path) -> None:
    reward = latent_reward(tmp_path)
    positive, empty = [[rand(1, 5, 16), {}]], torch.zeros(1, 16, 2, 4, 4)
    (loaded,) = execute(nodes, "NRGReward", name=str(tmp_path))
    inputs = {"model": wan, "reward": loaded, "text": "", "weights": "1:1:1", "preset": "best"}
    (guided, still) = (
        execute(nodes, "NRGRewardGuidance", **inputs, scale=scale, positive=positive)[0] for scale in (20.0, 0.0)
    )
    unguided = sample(wan, positive, empty)
    assert torch.equal(sample(still, positive, empty), unguided)
    settings = RewardGuidance.preset("best", weights="1:1:1", scale=20.0)
    by_hand = wan.clone()

    def formula(args: dict[str, Any]) -> Tensor:
        latents, sigma = args["input"], args["sigma"]
        velocity = (latents - args["denoised"]) / sigma
        velocity = guided_velocity(latents, velocity, sigma, reward, Conditioning(positive[0][0]), settings)
        return latents - sigma * velocity

    by_hand.set_model_sampler_post_cfg_function(formula)
    expected = sample(by_hand, positive, empty)
    assert not torch.allclose(expected, unguided, atol=1e-2)
    torch.testing.assert_close(sample(guided, positive, empty), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(sample(wan, positive, empty), unguided)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "euler_ancestral"])
def test_a_reward_on_frames_raises_its_score_of_wan(
    nodes: Any, wan: Any, wan_vae: Any, folders: dict[str, Path], sampler: str
) -> None:
    positive, empty = [[rand(1, 5, 16), {}]], torch.zeros(1, 16, 2, 4, 4)
    name = f"clipscore:{folders['clipscore']}"
    (reward,) = execute(nodes, "NRGReward", name=name, vae=wan_vae)
    inputs = {"reward": reward, "text": PROMPT, "scale": 300.0, "weights": "", "preset": "balanced"}
    (guided_model,) = execute(nodes, "NRGRewardGuidance", model=wan, **inputs)
    scores = []
    for model in (wan, guided_model):
        frames = wan_vae.decode(sample(model, positive, empty, sampler))[0]
        assert frames.shape == (5, 32, 32, 3)
        text, score = execute(nodes, "NRGJudge", images=frames, judge=name, text=PROMPT, one_clip=True, fps=16.0)
        assert text == f"TA {score:.4g}"
        scores.append(score)
    assert scores[1] > scores[0]


def test_two_rewards_guide_flux(nodes: Any, flux: Any, flux_vae: Any, folders: dict[str, Path]) -> None:
    positive = [[rand(1, 5, 16), {"pooled_output": rand(1, 8), "guidance": 3.5}]]
    names = ",".join(f"{name}:{folders[name]}=1" for name in ("pickscore", "aesthetic"))
    (reward,) = execute(nodes, "NRGReward", name=names, vae=flux_vae)
    inputs = {"text": PROMPT, "scale": 300.0, "weights": "preference=1,VQ=1", "preset": "best"}
    (model,) = execute(nodes, "NRGRewardGuidance", model=flux, reward=reward, **inputs)
    empty = torch.zeros(2, 16, 4, 6)
    unguided, guided = (sample(each, positive, empty, cfg=1.0) for each in (flux, model))
    seen = in_space_of(reward, flux.get_model_object("latent_format"))
    process_in = flux.get_model_object("latent_format").process_in
    scores = [
        seen.score_frames(seen.frames(process_in(wire)[:, :, None]), [PROMPT]).sum(dim=1)
        for wire in (unguided, guided)
    ]
    assert bool((scores[1] > scores[0]).all())


def test_frames_that_a_reward_sees_are_those_that_comfyui_decodes(
    nodes: Any, wan: Any, wan_vae: Any, folders: dict[str, Path]
) -> None:
    (reward,) = execute(nodes, "NRGReward", name=f"aesthetic:{folders['aesthetic']}", vae=wan_vae)
    latent_format = wan.get_model_object("latent_format")
    latents = rand(1, 16, 2, 6, 4)  # as the model reads them
    shown = wan_vae.decode(latent_format.process_out(latents)).movedim(-1, 1)  # (1, 3, T, H, W)
    torch.testing.assert_close(in_space_of(reward, latent_format).frames(latents), shown, atol=1e-5, rtol=0)


def test_latents_are_normalised_as_those_of_diffusers(nodes: Any) -> None:
    import diffusers
    from comfy import latent_formats

    vaes = {"Wan21": "AutoencoderKLWan", "Mochi": "AutoencoderKLMochi", "HunyuanVideo": "AutoencoderKLHunyuanVideo"}
    for name, kind in vaes.items():
        space = defaults(getattr(diffusers, kind))
        latent_format = getattr(latent_formats, name)()
        check_space(Trained(latent_format.latent_channels, space), latent_format)
        with pytest.raises(ValueError, match="normalised as those that this reward was trained on"):
            check_space(Trained(latent_format.latent_channels, {"scaling_factor": 0.9}), latent_format)
    published = {"Flux": (0.3611, 0.1159), "SD3": (1.5305, 0.0609)}  # of the VAEs' config.json
    for name, (factor, shift) in published.items():
        latent_format = getattr(latent_formats, name)()
        check_space(Trained(16, {"scaling_factor": factor, "shift_factor": shift}), latent_format)


class Trained:
    """A latent reward by its config alone."""

    def __init__(self, channels: int, space: dict[str, Any]) -> None:
        self.config = {"in_channels": channels, "latent_space": space}


def defaults(kind: Any) -> dict[str, Any]:
    given = {name: item.default for name, item in inspect.signature(kind.__init__).parameters.items()}
    return {name: given[name] for name in LATENT_OPTIONS if given.get(name) not in (None, inspect.Parameter.empty)}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_one_that_comfyui_accepts(nodes: Any, workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import execution
    import folder_paths

    prompt = as_prompt(workflow)
    files = [value for node in prompt.values() for value in node["inputs"].values() if "safetensors" in str(value)]
    monkeypatch.setattr(folder_paths, "get_filename_list", lambda _: files)
    for extra in ("hunyuan", "model_advanced", "video", "primitive", "flux", "sd3"):
        assert asyncio.run(nodes.load_custom_node(f"{FOLDER}/comfy_extras/nodes_{extra}.py"))
    valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("0", prompt, None))
    assert (valid, error, node_errors) == (True, None, {})
    assert len(outputs) == 2
