"""The reward that reads the denoiser's own features: the same gradient, and refused where it would not be."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tiny import sample, tiny_transformer
from torch.utils.checkpoint import set_checkpoint_early_stop

from nrg_sampler import Conditioning, RewardGuidance, attach, guided_velocity
from nrg_sampler.cost import step as cost
from nrg_sampler.cost.rows import cost_rows
from nrg_sampler.cost.workloads import WORKLOADS
from nrg_sampler.hosts.shared_forward import shared_forward
from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient
from nrg_sampler.rewards.latent import LatentReward

SHAPES = WORKLOADS["shapes"]
SHALLOW = replace(SHAPES, config={**SHAPES.config, "num_layers": 4})
GUIDANCE = RewardGuidance.preset("best", scale=50.0, max_push=None)
SHARED = RewardGuidance.preset("best", scale=50.0, max_push=None, forward="shared")


def deep_transformer():
    torch.manual_seed(0)
    tiny = tiny_transformer()
    return type(tiny).from_config({**tiny.config, "num_layers": 3}).eval()


@pytest.fixture
def pipe(wan):
    from diffusers import WanPipeline

    components = {**wan.components, "transformer": deep_transformer()}
    deep = WanPipeline(**{name: part for name, part in components.items() if name != "boundary_ratio"})
    deep.set_progress_bar_config(disable=True)
    return deep


@pytest.fixture
def reward(pipe):
    torch.manual_seed(1)
    made = LatentReward.from_transformer(pipe.transformer, num_blocks=2, prompt_in_trunk=True, num_members=2)
    return made.requires_grad_(False).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 16, 3, 4, 4, generator=generator)
    return latents, torch.tensor([0.25, 0.75]), torch.randn(2, 6, 16, generator=generator)


def denoise(pipe, latents, sigma, embeds):
    with torch.no_grad():
        return pipe.transformer(
            hidden_states=latents, timestep=sigma * 1000, encoder_hidden_states=embeds, return_dict=False
        )[0]


@pytest.mark.parametrize("disagreement", [0.0, 1.0])
def test_both_forwards_give_the_same_gradient_and_reward(pipe, reward, inputs, disagreement):
    latents, sigma, embeds = inputs
    separate = reward_gradient(latents, sigma, reward, Conditioning(embeds), disagreement=disagreement)
    with shared_forward(pipe, reward) as shared:
        denoise(pipe, latents, sigma, embeds)
        found = reward_gradient(latents, sigma, shared, Conditioning(embeds), disagreement=disagreement)
    for mine, theirs in zip(found, separate, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    assert separate[0].abs().max() > 1e-4


def test_the_axes_can_be_taken_apart(pipe, reward, inputs):
    latents, sigma, embeds = inputs
    separate, _ = axis_gradients(latents, sigma, reward, Conditioning(embeds))
    with shared_forward(pipe, reward) as shared:
        denoise(pipe, latents, sigma, embeds)
        found, _ = axis_gradients(latents, sigma, shared, Conditioning(embeds))
    torch.testing.assert_close(found, separate, rtol=1e-5, atol=1e-5 * float(separate.abs().max()))


def test_the_velocity_is_bit_identical(pipe, reward, inputs):
    latents, sigma, embeds = inputs
    plain = denoise(pipe, latents, sigma, embeds)
    with shared_forward(pipe, reward):
        assert torch.equal(denoise(pipe, latents, sigma, embeds), plain)
        assert torch.equal(denoise(pipe, latents, sigma, -embeds), denoise(pipe, latents, sigma, -embeds))


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("every", [1, 2])
def test_a_run_is_the_same_with_either(pipe, reward, guidance_scale, every):
    runs, rewards = [], []
    for guidance in (GUIDANCE, SHARED):
        with attach(pipe, reward, guidance, every=every) as trace:
            runs.append(sample(pipe, guidance_scale=guidance_scale, num_inference_steps=5))
        rewards.append([row["reward"] for row in trace.rows() if "reward" in row])
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-4, atol=1e-4)
    assert len(rewards[0]) == len(rewards[1]) > 1
    for separate, shared in zip(*rewards, strict=True):
        assert shared == pytest.approx(separate, rel=1e-4, abs=1e-5)
    assert (runs[0] - sample(pipe, guidance_scale=guidance_scale, num_inference_steps=5)).abs().max() > 1e-3


def test_saving_memory_changes_no_gradient_and_is_over_with_the_block(pipe, reward, inputs):
    latents, sigma, embeds = inputs
    separate = reward_gradient(latents, sigma, reward, Conditioning(embeds))
    reward.enable_gradient_checkpointing()
    for _ in range(2):
        with shared_forward(pipe, reward) as shared:
            assert pipe.transformer.gradient_checkpointing
            for _ in range(2):  # steps
                given = latents.clone()  # as every step has latents of its own
                for prompt in (embeds, -embeds):
                    denoise(pipe, given, sigma, prompt)
                found = reward_gradient(given, sigma, shared, Conditioning(embeds))
                for mine, theirs in zip(found, separate, strict=True):
                    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        assert not pipe.transformer.gradient_checkpointing


def test_features_are_good_for_one_gradient_also_when_they_were_computed_again_to_the_end(pipe, reward, inputs):
    latents, sigma, embeds = inputs
    reward.enable_gradient_checkpointing()
    with shared_forward(pipe, reward) as shared, set_checkpoint_early_stop(False):
        denoise(pipe, latents, sigma, embeds)
        reward_gradient(latents, sigma, shared, Conditioning(embeds))
        with pytest.raises(ValueError, match="Expected the denoiser to have seen latents"):
            reward_gradient(latents, sigma, shared, Conditioning(embeds))


def test_checkpointing_that_was_on_stays_on(pipe, reward):
    pipe.transformer.enable_gradient_checkpointing()
    own = pipe.transformer._gradient_checkpointing_func
    reward.enable_gradient_checkpointing()
    with shared_forward(pipe, reward):
        assert pipe.transformer._gradient_checkpointing_func is own
    assert pipe.transformer.gradient_checkpointing


def test_a_run_that_saves_memory_is_the_same(pipe, reward):
    runs = []
    for saving in (False, True):
        if saving:
            reward.enable_gradient_checkpointing()
        with attach(pipe, reward, SHARED):
            runs.append(sample(pipe, guidance_scale=5.0, num_inference_steps=4))
    torch.testing.assert_close(runs[1], runs[0], rtol=1e-5, atol=1e-5)


def test_the_pipeline_is_as_it_was_after_an_exception(pipe, reward):
    unguided = sample(pipe)
    tracked = [weight.requires_grad for weight in pipe.transformer.parameters()]

    def stop(pipe, index, timestep, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), attach(pipe, reward, SHARED):
        sample(pipe, callback_on_step_end=stop)
    assert [weight.requires_grad for weight in pipe.transformer.parameters()] == tracked
    assert not pipe.transformer._forward_pre_hooks
    assert not pipe.transformer.blocks[1]._forward_hooks
    assert torch.is_grad_enabled()
    assert torch.equal(sample(pipe), unguided)


def with_group_offload(transformer):
    cpu = torch.device("cpu")
    transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def with_first_block_cache(transformer):
    from diffusers import FirstBlockCacheConfig

    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))


def with_mag_cache(transformer):
    from diffusers import MagCacheConfig

    transformer.enable_cache(MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4))


UNSAFE = {
    "group offload": (with_group_offload, "group offloading"),
    "first-block cache": (with_first_block_cache, "First-Block cache"),
    "mag cache": (with_mag_cache, "MagCache"),
    "compiled": (lambda transformer: transformer.compile(fullgraph=True), "a compiled one"),
    "compiled blocks": (lambda transformer: transformer.compile_repeated_blocks(fullgraph=True), "a compiled one"),
}


@pytest.mark.parametrize(("spoil", "message"), UNSAFE.values(), ids=UNSAFE)
def test_what_would_make_it_silently_wrong_is_refused(pipe, reward, spoil, message):
    spoil(pipe.transformer)
    with (
        pytest.raises(ValueError, match=f"forward='shared', but (it has|got) {message}"),
        attach(pipe, reward, SHARED),
    ):
        sample(pipe)


def test_a_reward_of_other_weights_is_refused(pipe, reward):
    tuned = copy.deepcopy(reward)
    tuned.blocks[1].ffn.net[2].weight.data += 1e-3
    with (
        pytest.raises(ValueError, match="Expected the reward's block 1 to be the denoiser's own"),
        attach(pipe, tuned, SHARED),
    ):
        pass
    blind = LatentReward.from_transformer(pipe.transformer, num_blocks=2)
    with pytest.raises(ValueError, match="trained with prompt_in_trunk=True"), attach(pipe, blind, SHARED):
        pass


def test_settings_that_do_not_fit_are_refused(pipe, reward, inputs, wan22):
    with pytest.raises(ValueError, match="Expected `forward` to be 'separate' or 'shared', but got 'both'"):
        RewardGuidance(forward="both")
    with pytest.raises(ValueError, match=r"Expected `smoothing` to be 0 with forward='shared', but got 0.2"):
        RewardGuidance(forward="shared", smoothing=0.2)
    with pytest.raises(ValueError, match=r"Expected `lookahead` to be 0 with forward='shared', but got 0.2"):
        RewardGuidance(forward="shared", lookahead=0.2)
    latents, sigma, embeds = inputs
    with pytest.raises(ValueError, match="Expected forward='separate' in a sampling loop of your own"):
        guided_velocity(latents, latents, sigma, reward, Conditioning(embeds), SHARED)
    with (
        pytest.raises(ValueError, match="Expected a Wan pipeline with one transformer"),
        attach(wan22, reward, SHARED),
    ):
        pass
    with (
        pytest.raises(ValueError, match="Expected no inference mode"),
        torch.inference_mode(),
        attach(pipe, reward, SHARED),
    ):
        sample(pipe)


def test_sharing_saves_the_forward_pass():
    unguided, separate, _ = cost.count_step(SHALLOW, 2, False, torch.float32)
    _, shared, predicted = cost.count_step(SHALLOW, 2, False, torch.float32, shared=True)
    assert shared.flops / unguided.flops == pytest.approx(predicted, rel=0.1)
    assert shared.flops - unguided.flops < 0.7 * (separate.flops - unguided.flops)


def test_shared_features_can_be_computed_again():
    long = replace(SHALLOW, latents=(1, 16, 21, 32, 32))
    unguided, plain, _ = cost.count_step(long, 2, False, torch.float32, shared=True)
    _, saving, predicted = cost.count_step(long, 2, True, torch.float32, shared=True)
    assert saving.peak_bytes < 0.75 * plain.peak_bytes
    assert plain.flops < saving.flops
    assert saving.flops / unguided.flops == pytest.approx(predicted, rel=0.1)


def test_features_of_other_transformers_are_not_shared():
    with pytest.raises(ValueError, match="Expected mode 'separate' for flux, but got 'shared'"):
        next(cost_rows(WORKLOADS["flux"], mode="shared"))
