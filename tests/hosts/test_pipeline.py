"""NRGFlowPipeline: loading, saving, sharing, defaults and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SAMPLING, WORDS, sample, schedulers
from tiny_reward import TinyReward

from nrg_sampler import GuidanceTrace, NRGFlowPipeline, RewardGuidance
from nrg_sampler import checkpoints as checkpoints_module
from nrg_sampler.rewards import LatentReward


@pytest.fixture(scope="session")
def folder(components, tmp_path_factory) -> Path:
    """A stock WanPipeline folder with a sampling.json."""
    from diffusers import WanPipeline

    folder = tmp_path_factory.mktemp("wan")
    WanPipeline(**components, scheduler=schedulers()["unipc"]).save_pretrained(folder)
    (folder / "sampling.json").write_text(json.dumps(SAMPLING))
    return folder


@pytest.fixture(scope="session")
def latent_reward_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    reward = LatentReward(
        num_blocks=1,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        rope_max_seq_len=32,
        std=(0.1, 0.1, 0.1),
        recommended_scale=5.0,
    )
    folder = tmp_path_factory.mktemp("reward")
    reward.save_pretrained(folder)
    return folder


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def guided(wan) -> Any:
    return NRGFlowPipeline.from_pipe(wan, reward_model=TinyReward())


def test_a_folder_loads_as_the_pipeline_it_is_and_as_ours(folder):
    from diffusers import WanPipeline

    pipe = quiet(NRGFlowPipeline.from_pretrained(folder, reward_model=TinyReward()))
    assert isinstance(pipe, NRGFlowPipeline)
    assert isinstance(pipe, WanPipeline)
    assert isinstance(pipe.reward_model, TinyReward)
    assert pipe.trace is None
    stock = quiet(WanPipeline.from_pretrained(folder))
    unguided = sample(stock, guidance_scale=SAMPLING["guidance_scale"])
    assert torch.equal(sample(pipe, reward_scale=0), unguided)
    assert not torch.equal(sample(pipe), unguided)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_scale_zero_is_bit_identical_to_the_stock_pipeline(wan, solver):
    wan.scheduler = schedulers()[solver]
    unguided = sample(wan)
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TinyReward())
    assert torch.equal(sample(pipe, reward_scale=0), unguided)
    assert not torch.equal(sample(pipe, reward_scale=10), unguided)
    assert torch.equal(sample(pipe, reward_scale=0), unguided)
    assert torch.equal(sample(wan), unguided)


def test_the_call_takes_weights_scale_and_settings(guided):
    settings = RewardGuidance(weights="1:0", scale=3.0, max_push=None)
    by_settings = sample(guided, reward_guidance=settings)
    assert guided.trace.summary()["guided"] == 3
    assert torch.equal(sample(guided, reward_guidance=settings, reward_weights="1:0", reward_scale=3.0), by_settings)
    assert not torch.equal(sample(guided, reward_guidance=settings, reward_scale=6.0), by_settings)
    assert not torch.equal(sample(guided, reward_guidance=settings, reward_weights="0:1"), by_settings)
    assert "spread" in str(guided.trace)


def test_scale_zero_leaves_a_trace_that_says_so(guided):
    sample(guided, reward_scale=0)
    assert isinstance(guided.trace, GuidanceTrace)
    assert str(guided.trace) == "No guidance: the scale is 0."


def test_a_saved_pipeline_loads_with_its_reward_and_samples_the_same(folder, tmp_path):
    pipe = quiet(NRGFlowPipeline.from_pretrained(folder, reward_model=TinyReward()))
    pipe.save_pretrained(tmp_path)
    again = quiet(NRGFlowPipeline.from_pretrained(tmp_path))
    assert isinstance(again.reward_model, TinyReward)
    assert not any(parameter.requires_grad for parameter in again.reward_model.parameters())
    assert again.sampling_defaults == pipe.sampling_defaults
    assert json.loads((tmp_path / "sampling.json").read_text()) == SAMPLING
    assert torch.equal(sample(again, reward_scale=5), sample(pipe, reward_scale=5))
    without = NRGFlowPipeline.from_pretrained(tmp_path, reward_model=None)
    assert without.reward_model is None


def test_a_saved_latent_reward_is_recorded_under_the_package(folder, latent_reward_folder, tmp_path):
    pipe = quiet(NRGFlowPipeline.from_pretrained(folder, reward_model=latent_reward_folder))
    assert isinstance(pipe.reward_model, LatentReward)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert (index["_class_name"], index["reward_model"]) == ("WanPipeline", ["nrg_sampler", "LatentReward"])
    again = quiet(NRGFlowPipeline.from_pretrained(tmp_path))
    assert torch.equal(sample(again), sample(pipe))
    assert again.trace.axes == ("VQ", "MQ", "TA")


def test_how_a_pipeline_is_saved_is_how_its_latent_reward_is(folder, latent_reward_folder, tmp_path):
    pipe = NRGFlowPipeline.from_pretrained(folder, reward_model=latent_reward_folder)
    pipe.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="10KB")
    names = [path.name for path in (tmp_path / "shards/reward_model").iterdir()]
    shards = [name for name in names if "-of-" in name]
    assert len(shards) > 1
    assert all(".fp16-" in name for name in shards)
    assert "README.md" in names
    loaded = NRGFlowPipeline.from_pretrained(tmp_path / "shards", variant="fp16")
    assert torch.equal(loaded.reward_model.queries, pipe.reward_model.queries)
    pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert (tmp_path / "pickled/reward_model/diffusion_pytorch_model.bin").is_file()
    assert not list((tmp_path / "pickled/reward_model").glob("*.safetensors"))


def test_a_saved_folder_loads_with_plain_diffusers_where_this_package_is_unknown(
    folder, latent_reward_folder, tmp_path
):
    NRGFlowPipeline.from_pretrained(folder, reward_model=latent_reward_folder).save_pretrained(tmp_path)
    program = (
        "import sys; from diffusers import DiffusionPipeline, WanPipeline\n"
        "for kind in (WanPipeline, DiffusionPipeline):\n"
        "    pipe = kind.from_pretrained(sys.argv[1])\n"
        "    assert type(pipe) is WanPipeline and not hasattr(pipe, 'reward_model')\n"
        "    pipe.transformer(*(__import__('torch').zeros(s) for s in ((1, 16, 1, 2, 2), (1,), (1, 2, 16))))\n"
        "assert 'nrg_sampler' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, cwd=tmp_path)


def test_from_pipe_shares_everything_and_upcasts_nothing(wan):
    wan.transformer.to(torch.bfloat16)
    try:
        pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TinyReward())
        assert pipe.transformer is wan.transformer
        assert pipe.scheduler is wan.scheduler
        assert {parameter.dtype for parameter in wan.transformer.parameters()} == {torch.bfloat16}
        assert type(wan).__name__ == "WanPipeline"
        assert not isinstance(wan, NRGFlowPipeline)
        assert "reward_model" not in wan.config
        assert pipe.config.reward_model[1] == "TinyReward"
        assert sample(pipe).isfinite().all()
    finally:
        wan.transformer.to(torch.float32)


def test_from_pipe_of_a_guided_pipeline_keeps_its_reward_unless_told_otherwise(guided):
    assert NRGFlowPipeline.from_pipe(guided).reward_model is guided.reward_model
    other = TinyReward()
    assert NRGFlowPipeline.from_pipe(guided, reward_model=other).reward_model is other
    assert guided.reward_model is not other


def test_from_pipe_of_a_folder_s_pipeline_knows_its_sampling_defaults(folder):
    from diffusers import WanPipeline

    pipe = NRGFlowPipeline.from_pipe(WanPipeline.from_pretrained(folder), reward_model=TinyReward())
    assert pipe.sampling_defaults["num_frames"] == 3


def test_arguments_left_out_come_from_the_folder(folder):
    pipe = quiet(NRGFlowPipeline.from_pretrained(folder, reward_model=TinyReward()))
    assert pipe.sampling_defaults == {key: value for key, value in SAMPLING.items() if key != "closed_vocabulary"}
    frames = pipe("a red circle", output_type="pt").frames
    assert frames.shape == (1, 3, 3, 16, 16)  # (B, T, C, H, W)
    assert pipe.scheduler.num_inference_steps == 3
    assert pipe.guidance_scale == 4.0
    frames = pipe("a red circle", None, 32, num_frames=5, output_type="pt").frames
    assert frames.shape == (1, 5, 3, 32, 16)


def test_the_signature_shows_both_sets_of_arguments(guided):
    import inspect

    names = list(inspect.signature(guided.__call__).parameters)
    assert names[:2] == ["prompt", "negative_prompt"]
    assert names[-4:] == ["reward_weights", "reward_scale", "reward_guidance", "reward_prompts"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'reward_scales'"):
        guided("a red circle", reward_scales=1)


def test_the_reward_stays_put_when_the_pipeline_is_offloaded(guided):
    assert "reward_model" in guided._exclude_from_cpu_offload
    assert "reward_model" in guided._optional_components
    assert "reward_model" in guided.components


@pytest.mark.parametrize("prompt", ["a red dragon", ["a red circle", "a dragon flying"]])
def test_words_the_model_never_saw_are_refused(folder, prompt):
    pipe = NRGFlowPipeline.from_pretrained(folder, reward_model=TinyReward())
    unknown = "'dragon'" if isinstance(prompt, str) else "'dragon', 'flying'"
    message = f"Expected words that the model was trained on, but got {unknown}; write the prompt with these: "
    with pytest.raises(ValueError, match=message + ", ".join(sorted(WORDS))):
        pipe(prompt)
    with pytest.raises(ValueError, match="but got 'ugly'"):
        pipe("a red circle", negative_prompt="ugly")


def test_an_open_vocabulary_is_not_checked(folder, tmp_path):
    pipe = quiet(NRGFlowPipeline.from_pretrained(folder, reward_model=TinyReward()))
    pipe._sampling = {**SAMPLING, "closed_vocabulary": False}
    assert sample(pipe, "a red dragon").isfinite().all()


@pytest.mark.parametrize(
    "wish", [{"reward_weights": "1:1"}, {"reward_scale": 1.0}, {"reward_guidance": RewardGuidance()}]
)
def test_guidance_without_a_reward_is_refused(wan, wish):
    pipe = NRGFlowPipeline.from_pipe(wan)
    with pytest.raises(
        ValueError, match="Expected a pipeline with a reward, but `reward_model` is None; load one with"
    ):
        sample(pipe, **wish)
    assert torch.equal(sample(pipe, reward_scale=0), sample(wan))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_weights": "1:1:1"}, r"Expected 2 reward weights \(mean:spread\), but got 3"),
        ({"reward_weights": "1:x"}, "Expected reward weights like '1:1:1'"),
        ({"reward_weights": "1:-1"}, "Expected reward weights of 0 or more, but got -1"),
        ({"reward_weights": "0:0"}, "Expected at least one reward weight above 0"),
        ({"reward_weights": {"VQ": 1}}, "Expected weights for the axes mean, spread, but got VQ"),
        ({"reward_scale": float("inf")}, "Expected `scale` to be a finite number, but got inf"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(guided, settings, message):
    with pytest.raises(ValueError, match=message):
        sample(guided, **settings)


def test_a_reward_for_another_latent_space_is_refused(wan, folder):
    for make in (
        NRGFlowPipeline.from_pipe,
        lambda pipe, reward_model: NRGFlowPipeline.from_pretrained(folder, reward_model),
    ):
        with pytest.raises(ValueError, match="Expected latents with 4 channels, but got 16"):
            make(wan, reward_model=TinyReward(channels=4))


def test_a_folder_that_cannot_be_written_is_refused(guided, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Expected a folder that can be written to, but .*file cannot"):
        guided.save_pretrained(tmp_path / "file")


def copied(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target / "copy"))


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_truncated_checkpoint_is_named(folder, tmp_path, part):
    broken = copied(folder, tmp_path)
    weights = next((broken / part).glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    with pytest.raises(
        ValueError, match=f"Expected a complete file in {weights}, but it cannot be read .*; download or"
    ):
        NRGFlowPipeline.from_pretrained(broken)


def test_a_broken_config_is_named(folder, tmp_path):
    broken = copied(folder, tmp_path)
    (broken / "transformer" / "config.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"Expected a complete file in .*transformer/config.json, but it cannot be read"
    ):
        NRGFlowPipeline.from_pretrained(broken)
    (broken / "transformer" / "config.json").unlink()


def test_a_truncated_reward_is_named(folder, latent_reward_folder, tmp_path):
    broken = copied(latent_reward_folder, tmp_path)
    weights = next(broken.glob("*.safetensors"))
    os.truncate(weights, 100)
    with pytest.raises(ValueError, match=f"Expected a complete file in {weights}, but it cannot be read"):
        NRGFlowPipeline.from_pretrained(folder, reward_model=broken)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "Expected a diffusers pipeline in .*, but found none"),
        (
            {"_class_name": "StableDiffusionPipeline"},
            "Expected a pipeline of a rectified flow, but StableDiffusionPip",
        ),
        ({"_class_name": "NoSuchPipeline"}, "Expected a pipeline class of diffusers in .*, but got 'NoSuchPipeline'"),
    ],
)
def test_a_folder_without_a_supported_pipeline_is_refused(tmp_path, index, message):
    if index is not None:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        NRGFlowPipeline.from_pretrained(tmp_path)


def test_a_folder_without_a_reward_is_refused_as_one(folder, tmp_path):
    with pytest.raises(ValueError, match=r"Expected a reward in .*, but found none"):
        NRGFlowPipeline.from_pretrained(folder, reward_model=tmp_path)
    with pytest.raises(ValueError, match=r"Expected a LatentReward in .*, but got WanTransformer3DModel"):
        NRGFlowPipeline.from_pretrained(folder, reward_model=folder / "transformer")


def test_the_bundled_names_lead_to_the_bundled_folders(folder, latent_reward_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"Expected the bundled model in .*pipeline, but it is not there; install"):
        NRGFlowPipeline.from_pretrained("shapes")
    (tmp_path / "pipeline").symlink_to(folder)
    (tmp_path / "reward").symlink_to(latent_reward_folder)
    pipe = quiet(NRGFlowPipeline.from_pretrained("shapes"))
    assert isinstance(pipe.reward_model, LatentReward)
    assert pipe("a red circle", output_type="latent").frames.shape == (1, 16, 2, 8, 8)
    assert NRGFlowPipeline.from_pretrained("shapes", reward_model=None).reward_model is None
