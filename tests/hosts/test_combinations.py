"""Guidance together with whatever else people switch on: it still guides, and as it does without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import PromptMatch, TowardTarget, sample, schedulers
from tiny_families import TINY

from nrg_sampler import LatentReward, NRGFlowPipeline, RewardGuidance, attach

STRONG = RewardGuidance.preset("best", max_coefficient=20.0, scale=200.0, max_push=None)


def transformer() -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=3,
        rope_max_seq_len=32,
    ).eval()


@pytest.fixture
def pipe(components: dict[str, Any]) -> Iterator[Any]:
    """A Wan pipeline with a transformer of its own, which a test may change; hooks of the shared parts are removed."""
    from diffusers import WanPipeline

    pipe = WanPipeline(**{**components, "transformer": transformer()}, scheduler=schedulers()["unipc"])
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    pipe.remove_all_hooks()


def guided(pipe: Any, **settings: Any) -> torch.Tensor:
    with attach(pipe, PromptMatch(), STRONG) as trace:
        result = sample(pipe, **settings)
    assert trace.summary()["guided"] > 0
    assert trace.summary()["not_finite"] == 0
    return result


def offloaded_by_groups(pipe: Any) -> None:
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")


def offloaded_by_model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offloaded_in_sequence(pipe: Any) -> None:
    from accelerate import cpu_offload

    cpu_offload(pipe.transformer, torch.device("cpu"))  # what enable_sequential_cpu_offload does to each component


@pytest.mark.parametrize("offload", [offloaded_by_groups, offloaded_by_model, offloaded_in_sequence])
def test_offloading_the_model_changes_nothing(pipe: Any, offload: Callable[[Any], None]) -> None:
    expected, unguided = guided(pipe), sample(pipe)
    offload(pipe)
    torch.testing.assert_close(guided(pipe), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(sample(pipe), unguided, atol=1e-5, rtol=1e-4)


def in_place(pipe: Any, **options: Any) -> None:
    pipe.transformer.compile(**options)


def in_place_and_whole(pipe: Any, **options: Any) -> None:
    pipe.transformer.compile(fullgraph=True, **options)


def as_a_wrapper(pipe: Any, **options: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **options)


def by_blocks(pipe: Any, **options: Any) -> None:
    pipe.transformer.compile_repeated_blocks(fullgraph=True, **options)


@pytest.mark.parametrize("compile_it", [in_place, in_place_and_whole, as_a_wrapper, by_blocks])
def test_a_compiled_model_is_guided_and_not_compiled_again(pipe: Any, compile_it: Callable[..., None]) -> None:
    expected, unguided = guided(pipe), sample(pipe)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_it(pipe, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(guided(pipe), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sample(pipe), unguided, atol=1e-5, rtol=1e-4)
    assert len(graphs) == 1


def test_a_compiled_reward_guides_the_same_and_is_not_compiled_again(pipe: Any) -> None:
    reward = LatentReward.from_transformer(pipe.transformer, num_blocks=2).requires_grad_(False).eval()

    def guided_by_it() -> torch.Tensor:
        with attach(pipe, reward, STRONG):
            return sample(pipe)

    expected, graphs = guided_by_it(), []
    assert (sample(pipe) - expected).abs().max() > 1e-3

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    reward.compile(backend=backend)
    torch.testing.assert_close(guided_by_it(), expected, atol=1e-5, rtol=1e-4)
    compiled = len(graphs)
    torch.testing.assert_close(guided_by_it(), expected, atol=1e-5, rtol=1e-4)
    assert len(graphs) == compiled > 0


def first_block_cache() -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=10.0)


def mag_cache() -> Any:
    from diffusers.hooks import MagCacheConfig

    return MagCacheConfig(num_inference_steps=6, mag_ratios=[1.0] * 6, retention_ratio=0.2)


def pyramid_attention_broadcast(pipe: Any) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster_cache(pipe: Any) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 990),  # not the first step, which fills the cache
        is_guidance_distilled=True,  # one call for each prompt
        attention_weight_callback=lambda module: 0.5,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


CACHES = {
    "First-Block": lambda pipe: first_block_cache(),
    "MagCache": lambda pipe: mag_cache(),
    "PAB": pyramid_attention_broadcast,
    "FasterCache": faster_cache,
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("first", ["cache", "guidance"])
def test_a_cache_of_the_model_s_features_leaves_the_reward_fresh(pipe: Any, name: str, first: str) -> None:
    """The reward is evaluated in every step, also where the model's blocks are skipped, whichever was on first."""
    uncached = sample(pipe, num_inference_steps=6)
    reward = PromptMatch()
    config = CACHES[name](pipe)
    if first == "cache":
        pipe.transformer.enable_cache(config)
    unguided = sample(pipe, num_inference_steps=6) if first == "cache" else None
    with attach(pipe, reward, STRONG) as trace:
        if first == "guidance":
            pipe.transformer.enable_cache(config)
        result = sample(pipe, num_inference_steps=6)
    assert trace.summary()["guided"] == len(reward.seen) == 5
    assert not torch.equal(result, uncached)
    if unguided is not None:
        assert not torch.equal(unguided, uncached)
        assert not torch.equal(result, unguided)
        assert torch.equal(sample(pipe, num_inference_steps=6), unguided)
    pipe.transformer.disable_cache()
    assert torch.equal(sample(pipe, num_inference_steps=6), uncached)


def test_layerwise_casting_of_the_model_leaves_the_reward_in_float32(pipe: Any) -> None:
    expected = guided(pipe)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    unguided = sample(pipe)
    result = guided(pipe)
    assert not torch.equal(result, unguided)
    push, reference = (result - unguided).flatten(), (expected - sample_plain(pipe)).flatten()
    assert torch.cosine_similarity(push, reference, dim=0) > 0.9


def sample_plain(pipe: Any) -> torch.Tensor:
    from diffusers import WanPipeline

    plain = WanPipeline(**{**pipe.components, "transformer": transformer()})
    plain.set_progress_bar_config(disable=True)
    return sample(plain)


def test_a_lora_on_the_model_stays_in_force(pipe: Any) -> None:
    from peft import LoraConfig

    unadapted = guided(pipe)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    unguided, result = sample(pipe), guided(pipe)
    assert not torch.equal(result, unguided)
    assert not torch.equal(result, unadapted)
    pipe.transformer.disable_adapters()
    torch.testing.assert_close(guided(pipe), unadapted)


def test_a_quantised_model_is_guided(pipe: Any) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    unquantised = guided(pipe)
    quanto.quantize(pipe.transformer, weights=quanto.qint8)
    quanto.freeze(pipe.transformer)
    unguided, result = sample(pipe), guided(pipe)
    assert not torch.equal(result, unguided)
    assert torch.cosine_similarity(result.flatten(), unquantised.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("name", ["Wan", "LTX", "Stable Diffusion 3", "Z-Image", "HunyuanVideo 1.5", "Qwen-Image"])
def test_two_prompts_are_guided_each_by_its_own(name: str) -> None:
    """The second of two is what it is alone, also where conditional and unconditional calls are one batch."""
    tiny = TINY[name]()
    first, second = tiny.arguments, {key: other_prompt(value) for key, value in tiny.arguments.items()}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    reward = PromptMatch()
    with attach(tiny.pipe, reward, STRONG):
        both = tiny.sample(**{key: joined(first[key], second[key]) for key in first}, generator=generators)
        alone = tiny.sample(**second, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-3)
    length = len(second["prompt_embeds"][0])
    torch.testing.assert_close(reward.seen[0][1, :length], second["prompt_embeds"][0])


def other_prompt(value: Any) -> Any:
    if isinstance(value, list):
        return [other_prompt(entry) for entry in value]
    return value.flip(0).flip(-1) if value.is_floating_point() else value


def joined(first: Any, second: Any) -> Any:
    return first + second if isinstance(first, list) else torch.cat([first, second])


def test_several_samples_of_a_prompt_are_guided_each_on_its_own(pipe: Any) -> None:
    both = guided(pipe, num_videos_per_prompt=2)
    torch.testing.assert_close(both[1:], guided(pipe, seed=1), atol=1e-5, rtol=1e-4)


def test_prompt_lists_and_prompt_embeds_mean_the_same(pipe: Any) -> None:
    prompts = ["a red circle", "blue square moving left"]
    with torch.no_grad():
        embeds, negative = pipe.encode_prompt(prompts, max_sequence_length=8)
    settings = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    by_prompt = guided(pipe, prompt=prompts)
    with attach(pipe, PromptMatch(), STRONG):
        by_embeds = pipe(
            **settings,
            generator=generators,
            height=16,
            width=16,
            num_frames=3,
            num_inference_steps=4,
            output_type="latent",
        ).frames
    torch.testing.assert_close(by_embeds, by_prompt)


def test_frames_are_those_of_the_guided_latents(pipe: Any) -> None:
    latents = guided(pipe, output_type="latent")
    frames = guided(pipe, output_type="pt")
    config = pipe.vae.config
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        decoded = pipe.video_processor.postprocess_video(pipe.vae.decode(latents * std + mean).sample, "pt")
    torch.testing.assert_close(frames, decoded)


def test_a_callback_sees_guided_latents_and_may_change_them(pipe: Any) -> None:
    seen = []

    def halve(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return {"latents": tensors["latents"] / 2}

    pipe.scheduler = schedulers()["euler"]
    result = guided(pipe, callback_on_step_end=halve)
    assert len(seen) == 4
    assert torch.equal(result, seen[-1] / 2)


def test_an_interrupted_run_ends_and_the_next_one_is_whole(pipe: Any) -> None:
    expected = guided(pipe)

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index == 1
        return {}

    with attach(pipe, PromptMatch(), STRONG) as trace:
        interrupted = sample(pipe, callback_on_step_end=stop)
        whole = sample(pipe)
    assert not torch.equal(interrupted, expected)
    assert torch.equal(whole, expected)
    assert [step.run for step in trace.steps] == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("offload", [offloaded_by_model, offloaded_by_groups])
def test_the_reward_of_a_pipeline_stays_put_when_the_rest_is_offloaded(
    pipe: Any, offload: Callable[[Any], None]
) -> None:
    from tiny_reward import TinyReward

    with_reward = NRGFlowPipeline.from_pipe(pipe, reward_model=TinyReward())
    expected = sample(with_reward, reward_scale=5)
    offload(with_reward)
    torch.testing.assert_close(sample(with_reward, reward_scale=5), expected)
    assert not hasattr(with_reward.reward_model, "_hf_hook")
    assert not hasattr(with_reward.reward_model, "_diffusers_hook")


def test_a_reward_in_half_precision_guides(pipe: Any) -> None:
    pipe.transformer.to(torch.bfloat16)
    unguided = sample(pipe)
    with attach(pipe, TowardTarget(), STRONG):
        assert (sample(pipe) - 1).square().mean() < (unguided - 1).square().mean()
