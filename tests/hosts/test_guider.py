"""Reward guidance as a guider of modular pipelines: the same result as attach."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import PromptMatch, TowardTarget, schedulers
from tiny_families import TINY
from tiny_families.base import PROMPTS, rand
from tiny_families.videos import HUNYUAN_15_PROMPTS, HUNYUAN_15_TRANSFORMER
from tiny_families.wan import wan_transformer

from nrg_sampler import RewardGuidance, RewardGuider, attach
from nrg_sampler.guidance.trace import GuidanceTrace

STRONG = RewardGuidance(max_coefficient=20.0, scale=200.0, max_push=None)


class Modular:
    """The denoising blocks of a modular pipeline, and the state they start from."""

    def __init__(self, blocks: Any, state: dict[str, Any], **components: Any) -> None:
        from diffusers import ClassifierFreeGuidance

        self.pipe = blocks.init_pipeline()
        self.pipe.update_components(
            scheduler=schedulers()["euler"], guider=ClassifierFreeGuidance(guidance_scale=4.0), **components
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.state = state

    def sample(self, steps: int = 3) -> torch.Tensor:
        self.pipe.scheduler.set_timesteps(steps)
        timesteps = {"timesteps": self.pipe.scheduler.timesteps, "num_inference_steps": steps}
        return self.pipe(**self.state, **timesteps, output="latents")


def modular_wan() -> Modular:
    from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep

    state = {"latents": rand(1, 4, 2, 4, 6), "dtype": torch.float32, "attention_kwargs": None, **PROMPTS}
    return Modular(WanDenoiseStep(), state, transformer=wan_transformer())


def modular_hunyuan() -> Modular:
    from diffusers.modular_pipelines.hunyuan_video1_5.denoise import HunyuanVideo15DenoiseStep

    state = {
        "latents": rand(1, 4, 2, 2, 3),
        "cond_latents_concat": torch.zeros(1, 4, 2, 2, 3),
        "mask_concat": torch.zeros(1, 1, 2, 2, 3),
        "image_embeds": torch.zeros(1, 4, 8),
        "attention_kwargs": None,
        **HUNYUAN_15_PROMPTS,
    }
    return Modular(HunyuanVideo15DenoiseStep(), state, transformer=HUNYUAN_15_TRANSFORMER())


@pytest.fixture(params=[modular_wan, modular_hunyuan])
def modular(request: pytest.FixtureRequest) -> Modular:
    make: Callable[[], Modular] = request.param
    return make()


def test_it_samples_what_the_attached_pipeline_samples(modular: Modular) -> None:
    unguided = modular.sample()
    with attach(modular.pipe, PromptMatch(), STRONG):
        attached = modular.sample()
    plain = modular.pipe.guider
    reward = PromptMatch()
    modular.pipe.update_components(guider=RewardGuider(plain, modular.pipe.scheduler, reward, STRONG))
    torch.testing.assert_close(modular.sample(), attached)
    assert not torch.equal(attached, unguided)
    assert len(reward.seen) == 2
    assert torch.equal(reward.seen[0], modular.state["prompt_embeds"])
    assert not modular.pipe.transformer._forward_pre_hooks
    modular.pipe.update_components(guider=plain)
    assert torch.equal(modular.sample(), unguided)


def test_scale_zero_is_bit_identical(modular: Modular) -> None:
    unguided = modular.sample()
    off = RewardGuidance(scale=0)
    modular.pipe.update_components(
        guider=RewardGuider(modular.pipe.guider, modular.pipe.scheduler, TowardTarget(), off)
    )
    assert torch.equal(modular.sample(), unguided)


def test_it_works_in_the_classic_pipeline_with_a_guider() -> None:
    tiny = TINY["HunyuanVideo 1.5"]()
    with attach(tiny.pipe, PromptMatch(), STRONG):
        attached = tiny.sample()
    tiny.pipe.guider = RewardGuider(tiny.pipe.guider, tiny.pipe.scheduler, PromptMatch(), STRONG)
    torch.testing.assert_close(tiny.sample(), attached)


@pytest.mark.parametrize(
    "name", ["ClassifierFreeGuidance", "ClassifierFreeZeroStarGuidance", "AdaptiveProjectedGuidance"]
)
def test_any_guider_can_be_wrapped(name: str) -> None:
    import diffusers

    modular = modular_wan()
    modular.pipe.update_components(guider=getattr(diffusers, name)(guidance_scale=3.0))
    with attach(modular.pipe, PromptMatch(), STRONG):
        attached = modular.sample()
    modular = modular_wan()
    inner = getattr(diffusers, name)(guidance_scale=3.0)
    modular.pipe.update_components(guider=RewardGuider(inner, modular.pipe.scheduler, PromptMatch(), STRONG))
    torch.testing.assert_close(modular.sample(), attached)


def test_it_keeps_class_and_configuration_of_the_guider_it_wraps(tmp_path: Any) -> None:
    from diffusers import ClassifierFreeGuidance

    inner = ClassifierFreeGuidance(guidance_scale=3.0)
    guider = RewardGuider(inner, schedulers()["euler"], TowardTarget())
    assert isinstance(guider, ClassifierFreeGuidance)
    assert isinstance(guider, RewardGuider)
    assert type(inner) is ClassifierFreeGuidance
    assert guider.config == inner.config
    assert isinstance(guider.trace, GuidanceTrace)
    assert type(copy.deepcopy(guider)) is ClassifierFreeGuidance
    assert type(guider.new(guidance_scale=2.0)) is ClassifierFreeGuidance
    guider.save_pretrained(tmp_path)
    assert ClassifierFreeGuidance.from_pretrained(tmp_path).guidance_scale == 3.0


def test_attaching_to_a_pipeline_with_a_guided_guider_is_refused() -> None:
    pipe = modular_wan().pipe
    pipe.update_components(guider=RewardGuider(pipe.guider, pipe.scheduler, TowardTarget()))
    message = "Expected a pipeline without guidance, but guidance is attached"
    with pytest.raises(ValueError, match=message), attach(pipe, TowardTarget()):
        pass


def test_bad_input_is_refused_when_it_is_made() -> None:
    from diffusers import ClassifierFreeGuidance, DDIMScheduler

    inner = ClassifierFreeGuidance()
    with pytest.raises(ValueError, match="Expected a rectified-flow scheduler, but got DDIMScheduler"):
        RewardGuider(inner, DDIMScheduler(), TowardTarget())
    with pytest.raises(ValueError, match="Expected a reward, a callable with named `axes`, but got None"):
        RewardGuider(inner, schedulers()["euler"], None)
