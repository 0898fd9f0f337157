"""Text and frame rate where a reward guides from inside a pipeline, a scheduler, a guider or a search."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tiny import SAMPLING, sample, schedulers
from tiny_families import TINY
from tiny_families.base import PROMPTS, rand
from tiny_families.wan import wan_transformer
from tiny_text import MayReadText, ReadsText, built, run

from nrg_sampler import NRGFlowPipeline, RewardGuidance, RewardGuidedScheduler, RewardGuider, attach
from nrg_sampler.search import Search, search

BEST = RewardGuidance.preset("best")
A, B = "a red circle", "a blue square moving left"


def embedded(pipe: Any, prompt: Any = A) -> dict[str, Any]:
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(prompt, max_sequence_length=8)
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}


def test_a_pipeline_with_a_reward_hands_its_prompts_over(wan: Any) -> None:
    reward = ReadsText()
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=reward)
    sample(pipe, [A, B], reward_guidance=BEST)
    sample(pipe, A, num_videos_per_prompt=2, reward_guidance=BEST)
    sample(pipe, A, reward_guidance=BEST, reward_prompts="circle")
    assert list(dict.fromkeys(reward.seen)) == [(A, B), (A, A), ("circle",)]
    with pytest.raises(
        ValueError, match=r"`attach\(..., prompts=\[...\]\)`, or `reward_prompts=\[...\]` to an `NRGFlow"
    ):
        sample(pipe, None, reward_guidance=BEST, **embedded(wan))
    sample(pipe, None, reward_guidance=BEST, reward_prompts=[A], **embedded(wan))
    assert reward.seen[-1] == (A,)
    with pytest.raises(ValueError, match=r"called with, 2, but got 3"):
        sample(pipe, [A, B], reward_guidance=BEST, reward_prompts=[A, B, A])


def test_scale_zero_asks_for_no_text_and_changes_nothing(wan: Any) -> None:
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=ReadsText())
    features = embedded(wan)
    unguided = sample(wan, None, **features)
    assert torch.equal(sample(pipe, None, reward_scale=0.0, **features), unguided)
    assert torch.equal(sample(pipe, A, reward_scale=0.0), sample(wan, A))


@pytest.mark.parametrize("prompts", [A, [A]])
def test_a_guided_scheduler_has_the_prompts_it_was_made_with(wan: Any, prompts: Any) -> None:
    with attach(wan, ReadsText(), BEST):
        attached = sample(wan, A)
    plain, features = wan.scheduler, embedded(wan)["prompt_embeds"]
    made = RewardGuidedScheduler(plain, ReadsText(), BEST, prompt_embeds=features, prompts=prompts)
    again = type(made).from_config(plain.config, ReadsText(), BEST, prompt_embeds=features, prompts=prompts)
    for guided in (made, again):
        wan.scheduler = guided
        assert torch.equal(sample(wan, A), attached)
    wan.scheduler = RewardGuidedScheduler(plain, ReadsText(), BEST)
    with pytest.raises(ValueError, match=r"pass `RewardGuidedScheduler\(..., prompts=\[...\]\)`, one text"):
        sample(wan, A)


def modular() -> tuple[Any, dict[str, Any]]:
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep

    pipe = WanDenoiseStep().init_pipeline()
    guider = ClassifierFreeGuidance(guidance_scale=4.0)
    pipe.update_components(scheduler=schedulers()["euler"], guider=guider, transformer=wan_transformer())
    pipe.set_progress_bar_config(disable=True)
    state = {"latents": rand(1, 4, 2, 4, 6), "dtype": torch.float32, "attention_kwargs": None, **PROMPTS}
    return pipe, state


def run_modular(pipe: Any, values: dict[str, Any], **others: Any) -> Any:
    pipe.scheduler.set_timesteps(3)
    timesteps = {"timesteps": pipe.scheduler.timesteps, "num_inference_steps": 3}
    return pipe(**values, **timesteps, **others, output="latents")


def test_a_guider_has_the_prompts_it_was_made_with() -> None:
    (pipe, state), reward = modular(), ReadsText()
    plain = pipe.guider
    pipe.update_components(guider=RewardGuider(plain, pipe.scheduler, reward, BEST, prompts=[A]))
    run_modular(pipe, state)
    assert set(reward.seen) == {(A,)}
    pipe.update_components(guider=RewardGuider(plain, pipe.scheduler, reward, BEST))
    with pytest.raises(ValueError, match=r"pass `RewardGuider\(..., prompts=\[...\]\)`"):
        run_modular(pipe, state)


@pytest.mark.filterwarnings("ignore:Unexpected input 'dict_keys")  # these blocks encode no text
def test_a_modular_pipeline_is_attached_with_prompts() -> None:
    from diffusers.modular_pipelines import PipelineState

    (pipe, state), reward = modular(), ReadsText()
    with attach(pipe, reward, BEST, prompts=A):
        run_modular(pipe, state)
    with attach(pipe, reward, BEST):
        run_modular(pipe, state, prompt=B)
        begun = PipelineState()
        begun.set("prompt", "of the state")
        run_modular(pipe, state, state=begun)
    assert list(dict.fromkeys(reward.seen)) == [(A,), (B,), ("of the state",)]


def test_the_rate_is_that_of_the_call() -> None:
    (pipe, settings), reward = built("LTX"), ReadsText()
    with attach(pipe, reward, BEST):
        run(pipe, settings, A, frame_rate=12)
        run(pipe, settings, A)
    assert list(dict.fromkeys(reward.rates)) == [12.0, 25.0]


def test_the_rate_is_else_that_of_the_folder(wan: Any, tmp_path: Any) -> None:
    from diffusers import WanPipeline

    reward = MayReadText()
    with attach(wan, reward, BEST):
        sample(wan, A)
    wan.save_pretrained(tmp_path)
    for settings, rate in (({**SAMPLING, "fps": 8}, 8.0), (SAMPLING, None), ([1], None)):
        (tmp_path / "sampling.json").write_text(json.dumps(settings))
        pipe = WanPipeline.from_pretrained(tmp_path)
        pipe.set_progress_bar_config(disable=True)
        with attach(pipe, reward, BEST):
            sample(pipe, A)
        assert reward.rates[-1] == rate
        with attach(pipe, reward, BEST, fps=12):
            sample(pipe, A)
        assert reward.rates[-1] == 12.0
    (tmp_path / "sampling.json").write_text(json.dumps({**SAMPLING, "fps": 8}))
    own = NRGFlowPipeline.from_pretrained(tmp_path, reward_model=None)
    own.reward_model = reward
    own.set_progress_bar_config(disable=True)
    sample(own, A)
    assert reward.rates[-1] == 8.0


@pytest.mark.parametrize("settings", [Search(candidates=3, moments=(0.5,), temperature=0.5), Search.particles(3)])
def test_candidates_that_are_drawn_keep_their_prompts(wan: Any, settings: Search) -> None:
    """The reward that chooses and the one that guides read one text for each row, prompt by prompt."""
    reward = ReadsText()
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=reward)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16, "num_frames": 3, "max_sequence_length": 8, "num_inference_steps": 4}
    search(pipe, [A, B], settings, output_type="latent", reward_guidance=BEST, **size)
    assert all(tuple(sorted(texts or (), reverse=True)) == texts for texts in reward.seen)
    assert {text for texts in reward.seen for text in texts or ()} == {A, B}


@pytest.mark.parametrize(
    "settings", [{"every": 3, "reuse": True}, {"frames": "every:2", "crop": 0.5}, {"smoothing": 0.1}]
)
def test_steps_that_reuse_or_cut_keep_the_prompts(wan: Any, settings: dict[str, Any]) -> None:
    reward = ReadsText()
    with attach(wan, reward, BEST, **settings):
        sample(wan, [A, B])
    assert set(reward.seen) == {(A, B)}


def test_the_tiny_families_without_text_are_still_guided() -> None:
    tiny, reward = TINY["LTX image-to-video"](), ReadsText()
    with attach(tiny.pipe, reward, BEST, prompts=A):
        tiny.sample()
    assert set(reward.seen) == {(A,)}
