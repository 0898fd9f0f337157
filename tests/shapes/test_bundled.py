"""The bundled model: what a newcomer gets, and the figures its cards promise, on a few held-out prompts."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import nrg_sampler.shapes
from nrg_sampler import NRGFlowPipeline
from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.judges.shapes import load_pixel_judge
from nrg_sampler.rewards.card import by_axis
from nrg_sampler.shapes.oracle import measure
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import ATTRIBUTES, caption, prompts, sample_scene

WEIGHTS = Path(nrg_sampler.shapes.__file__).parent / "weights"


@pytest.fixture(scope="module")
def shapes():
    pipe = NRGFlowPipeline.from_pretrained("shapes")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_fit_the_promised_size_and_have_cards():
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors"))
    assert 0 < size <= 32e6
    for part in ("pipeline", "reward"):
        assert (WEIGHTS / part / "README.md").read_text().startswith("---\n")


def test_the_card_of_the_reward_says_what_it_recommends(shapes):
    reward = shapes.reward_model
    label = (reward.recommended_scale, reward.recommended_damping, reward.recommended_fading)
    assert "; ".join(by_axis(values, reward.axes) for values in label) in (WEIGHTS / "reward/README.md").read_text()


@pytest.mark.parametrize(("weights", "early"), [("1:0:0", True), ("0:1:0", True), ("0:0:1", False)])
def test_picture_and_motion_are_pushed_where_noise_is_strong_and_the_prompt_where_it_is_weak(shapes, weights, early):
    shapes("a red circle moving right", reward_weights=weights, generator=generator(), output_type="latent")
    push = {row["sigma"]: row["push_ratio"] for row in shapes.trace.rows() if row["skipped"] is None}
    in_noise = sum(ratio for sigma, ratio in push.items() if sigma > 0.7) / sum(push.values())
    assert in_noise > 0.9 if early else in_noise < 0.4


def test_without_sizes_it_samples_what_it_was_trained_on(shapes):
    frames = shapes("a red circle moving right", num_inference_steps=2, generator=generator()).frames[0]
    assert frames.shape == (13, 64, 64, 3)


def test_stock_diffusers_loads_and_samples_it():
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(bundled_folder("pipeline"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        "a red circle moving right", height=64, width=64, num_frames=13, num_inference_steps=2, generator=generator()
    ).frames[0]
    assert frames.shape == (13, 64, 64, 3)


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_scale_zero_is_bit_identical_to_stock(shapes, scheduler):
    from diffusers import UniPCMultistepScheduler, WanPipeline

    stock = WanPipeline.from_pretrained(bundled_folder("pipeline"), dtype=torch.float32)
    guided = NRGFlowPipeline.from_pretrained("shapes")
    if scheduler == "unipc":
        for pipe in (stock, guided):
            pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    settings = {"height": 64, "width": 64, "num_frames": 13, "num_inference_steps": 4, "output_type": "latent"}
    settings |= {"max_sequence_length": 32, "guidance_scale": 4.0}
    for pipe in (stock, guided):
        pipe.set_progress_bar_config(disable=True)
    prompt = "a blue star moving up"
    expected = stock(prompt, generator=generator(), **settings).frames
    assert torch.equal(guided(prompt, reward_scale=0, generator=generator(), **settings).frames, expected)
    assert not torch.equal(guided(prompt, reward_scale=1, generator=generator(), **settings).frames, expected)
    assert torch.equal(guided(prompt, reward_scale=0, generator=generator(), **settings).frames, expected)


def test_unknown_words_are_named(shapes):
    with pytest.raises(ValueError, match="unicorn"):
        shapes("a red unicorn moving right", num_inference_steps=1)


@pytest.fixture(scope="module")
def reconstructions(shapes):
    """Held-out scenes, their clips and what the autoencoder makes of them."""
    rng = random.Random(0)
    scenes = [sample_scene(prompt, rng) for prompt in prompts("test")[:40]]
    clips = render(draw(scenes))
    with torch.no_grad():
        latents = [shapes.vae.encode(part * 2 - 1).latent_dist.mode() for part in clips.split(10)]
        decoded = torch.cat([shapes.vae.decode(part).sample for part in latents])
    return scenes, clips, (decoded / 2 + 0.5).clamp(0, 1)


def test_autoencoder_keeps_clips(reconstructions):
    _, clips, decoded = reconstructions
    psnr = -10 * (decoded - clips).pow(2).mean(dim=(1, 2, 3, 4)).log10()
    assert psnr.mean() >= 30


SMALL_STARS = pytest.mark.xfail(strict=True, reason="small stars lose their points in 8x8 patches and read as circles")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SMALL_STARS if name == "shape" else ()) for name in ATTRIBUTES]
)
def test_the_oracle_reads_attributes_of_reconstructions(reconstructions, name):
    scenes, _, decoded = reconstructions
    found = measure(decoded).read()
    right = sum(getattr(a, name) == getattr(scene.prompt, name) for a, scene in zip(found, scenes, strict=True))
    assert right / len(scenes) >= 0.97


def test_guidance_raises_the_reward_it_follows(shapes):
    texts = [caption(prompt) for prompt in prompts("validation")[:4]]
    seeds = [generator(seed) for seed in range(4)]

    def final_reward(scale):
        for seed, one in enumerate(seeds):
            one.manual_seed(seed)
        settings = {"reward_weights": "0:0:1", "num_inference_steps": 8, "output_type": "latent"}
        shapes(texts, reward_scale=scale, generator=seeds, **settings)
        return shapes.trace.rows()[-1]["reward"]["TA"] if scale else None

    assert final_reward(1.0) > final_reward(-1.0)


@pytest.fixture(scope="module")
def seen():
    """The bundled judge, held-out prompts and a faultless clip of each."""
    rng = random.Random(0)
    wanted = prompts("test")[:24]
    clips = render(draw([sample_scene(prompt, rng) for prompt in wanted]))
    return load_pixel_judge(), wanted, clips


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_the_judge_reads_the_prompt(seen, name):
    judge, wanted, clips = seen
    values = ATTRIBUTES[name]
    other = [replace(p, **{name: values[(values.index(getattr(p, name)) + 1) % len(values)]}) for p in wanted]
    right, wrong = (judge(clips, [caption(prompt) for prompt in chosen])[:, 2] for chosen in (wanted, other))
    assert (right > wrong).float().mean() >= 0.85


def test_the_judge_sees_faults_of_picture_and_motion(seen):
    judge, wanted, clips = seen
    texts = [caption(prompt) for prompt in wanted]
    whole = judge(clips, texts)
    noisy = (clips + 0.15 * torch.randn(clips.shape, generator=generator())).clamp(0, 1)
    shuffled = clips[:, :, torch.randperm(clips.shape[2], generator=generator())]
    assert (whole[:, 0] > judge(noisy, texts)[:, 0]).float().mean() >= 0.85
    assert (whole[:, 1] > judge(shuffled, texts)[:, 1]).float().mean() >= 0.85
