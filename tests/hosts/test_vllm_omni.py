"""What vLLM-Omni's RFC #6269 (pull request #6277) asks of a scheduler in its group of entry points."""

from __future__ import annotations

import copy
import inspect
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from tiny import PromptMatch, TowardTarget, schedulers
from tiny_text import built, run

from nrg_sampler import LatentReward, RewardGuidedScheduler, attach

GROUP = "vllm_omni.schedulers"
FREE = {"scale": 200.0, "max_push": None}
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module")
def entry() -> Any:
    points = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    return EntryPoint("nrg_reward", points["nrg_reward"], GROUP).load()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pipe, _ = built("Wan")
    pipe.scheduler = schedulers()["unipc"]
    pipe.save_pretrained(tmp_path)
    return tmp_path


def build(entry: Any, model: Path, **scheduler_kwargs: Any) -> Any:
    """As the engine makes it."""
    return entry.from_pretrained(str(model), subfolder="scheduler", local_files_only=True, **scheduler_kwargs)


def test_the_entry_point_is_a_class_that_makes_the_scheduler_of_the_model(entry: Any, model: Path) -> None:
    assert isinstance(entry, type) and issubclass(entry, RewardGuidedScheduler)
    plain = build(entry, model)
    assert type(plain).__name__ == "UniPCMultistepScheduler" and not isinstance(plain, RewardGuidedScheduler)
    guided = build(entry, model, reward=TowardTarget(), guidance={"scale": 2.0})
    assert isinstance(guided, RewardGuidedScheduler) and isinstance(guided, type(plain))
    assert guided.config.num_train_timesteps == 1000 and guided.config.flow_shift == plain.config.flow_shift
    assert inspect.signature(guided.set_timesteps) == inspect.signature(plain.set_timesteps)  # looked at for `sigmas`
    guided.set_begin_index(0)


def test_a_step_is_called_and_returns_as_the_contract_has_it(entry: Any, model: Path) -> None:
    guided, plain = build(entry, model, reward=TowardTarget(), preset="best", guidance=FREE), build(entry, model)
    results = []
    for scheduler in (guided, plain):
        scheduler.set_timesteps(4, device="cpu")
        latents = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
        for timestep in scheduler.timesteps:
            stepped = scheduler.step(torch.zeros_like(latents), timestep, latents, return_dict=False)
            assert isinstance(stepped, tuple)
            latents = stepped[0]
        results.append((latents - 1).square().mean())
    assert results[0] < results[1]


def test_the_copies_of_requests_are_guided_each_with_a_run_of_its_own(entry: Any, model: Path) -> None:
    guided = build(entry, model, reward=TowardTarget(), preset="best", guidance=FREE)
    first, second = copy.deepcopy(guided), copy.deepcopy(copy.deepcopy(guided))
    latents = torch.randn(2, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    alone = []
    for noise in latents:
        scheduler, sample = copy.deepcopy(guided), noise
        scheduler.set_timesteps(3)
        for timestep in scheduler.timesteps:
            sample = scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)[0]
        alone.append(sample)
    samples = list(latents)
    for scheduler, steps in ((first, 3), (second, 3)):
        scheduler.set_timesteps(steps)
    for timestep in first.timesteps:  # in turns, as an engine that serves two requests
        for index, scheduler in enumerate((first, second)):
            noise = torch.zeros_like(samples[index])
            samples[index] = scheduler.step(noise, timestep, samples[index], return_dict=False)[0]
    assert torch.equal(samples[0], alone[0]) and torch.equal(samples[1], alone[1])
    assert first.trace.summary()["guided"] == 2 and first.trace.mean_push() > 0
    assert first.trace is not second.trace and len(first.trace.steps) == 3


def test_a_name_guides_as_attach_does(entry: Any, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clipscore"
    folder.mkdir()
    name = f"clipscore:{tiny_named.write('clipscore', folder)}"
    pipe, settings = built("Wan")
    pipe.scheduler = schedulers()["unipc"]
    with attach(pipe, name, scale=100.0, max_push=None):
        attached = run(pipe, settings, "a red circle")
    options = {"guidance": {"scale": 100.0, "max_push": None}, "prompts": "a red circle"}
    pipe.scheduler = build(entry, model, reward=name, **options)
    torch.testing.assert_close(run(pipe, settings, "a red circle"), attached, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_served_is_refused_when_the_engine_starts(entry: Any, model: Path, tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "freq_dim": 16, "ffn_dim": 16, "text_dim": 16}
    LatentReward(num_blocks=1, in_channels=4, rope_max_seq_len=32, **sizes).save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="reads the features of each prompt, which vLLM-Omni does not hand"):
        build(entry, model, reward=str(tmp_path / "reward"))
    with pytest.raises(ValueError, match="did you mean 'pickscore'"):
        build(entry, model, reward="pickscor")
    with pytest.raises(ValueError, match="preset"):
        build(entry, model, reward=PromptMatch(), preset="quick")
