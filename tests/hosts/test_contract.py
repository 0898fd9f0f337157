"""What diffusers asks of a pipeline, asked of ours: for Wan, LTX and FLUX, with a reward among the components."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import schedulers
from tiny_families.full import full_flux, full_ltx
from tiny_reward import AnyLatents

from nrg_sampler import NRGFlowPipeline

PROMPTS = ["a red circle", "blue square moving left"]


class Subject:
    """A guided pipeline, and how to call it cheaply."""

    def __init__(self, pipe: Any, **size: Any) -> None:
        self.pipe = NRGFlowPipeline.from_pipe(pipe, reward_model=AnyLatents())
        self.pipe.set_progress_bar_config(disable=True)
        self.size = size

    def sample(self, prompt: Any = PROMPTS[0], pipe: Any = None, seeds: tuple[int, ...] = (0,), **changes: Any) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings = {"num_inference_steps": 3, "output_type": "latent", "return_dict": False, "reward_scale": 20.0}
        return (pipe or self.pipe)(prompt, generator=generators, **{**settings, **self.size, **changes})[0]


def wan(components: dict[str, Any]) -> Subject:
    from diffusers import WanPipeline

    pipe = WanPipeline(**components, scheduler=schedulers()["unipc"])
    return Subject(pipe, height=16, width=16, num_frames=3, max_sequence_length=8)


def ltx(components: dict[str, Any]) -> Subject:
    return Subject(full_ltx(), height=64, width=96, num_frames=9, max_sequence_length=8)


def flux(components: dict[str, Any]) -> Subject:
    return Subject(full_flux(), height=32, width=48, max_sequence_length=8)


@pytest.fixture(params=[wan, ltx, flux])
def subject(request: pytest.FixtureRequest, components: dict[str, Any]) -> Subject:
    make: Callable[[dict[str, Any]], Subject] = request.param
    return make(copy.deepcopy(components))  # a test moves them away


def optional_parts(pipe: Any) -> list[str]:
    return [name for name in pipe._optional_components if pipe.components[name] is None]


def test_saving_and_loading_gives_the_same_samples_with_and_without_optional_parts(
    subject: Subject, tmp_path: Path
) -> None:
    expected = subject.sample()
    subject.pipe.save_pretrained(tmp_path)
    loaded = NRGFlowPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(subject.sample(pipe=loaded), expected, atol=1e-4, rtol=1e-3)
    assert optional_parts(loaded) == optional_parts(subject.pipe)
    assert set(loaded.components) == set(subject.pipe.components)
    without = NRGFlowPipeline.from_pretrained(tmp_path, reward_model=None, dtype=torch.float32)
    assert without.reward_model is None
    assert "reward_model" in optional_parts(without)


def test_a_reward_is_an_optional_part_without_which_it_samples_plainly_and_says_so(
    subject: Subject, tmp_path: Path
) -> None:
    plain = subject.sample(reward_scale=0)
    subject.pipe.reward_model = None
    subject.pipe.save_pretrained(tmp_path)
    loaded = NRGFlowPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    for pipe in (subject.pipe, loaded):
        with pytest.warns(UserWarning, match="This pipeline has no reward, so that nothing is guided; load one with"):
            sampled = subject.sample(pipe=pipe, reward_scale=None)
        torch.testing.assert_close(sampled, plain, atol=1e-4, rtol=1e-3)


def weight_files(folder: Path) -> dict[str, set[str]]:
    """Return the names of the weight files of each part that has some."""
    parts: dict[str, set[str]] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        parts.setdefault(file.parent.name, set()).add(file.name)
    return parts


def test_a_variant_is_in_every_part_and_loads_as_nothing_else(subject: Subject, tmp_path: Path) -> None:
    subject.pipe.save_pretrained(tmp_path, variant="fp16")
    files = weight_files(tmp_path)
    assert "reward_model" in files
    assert all(".fp16" in name for names in files.values() for name in names)
    loaded = NRGFlowPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float32)
    assert torch.equal(loaded.reward_model.wanted, subject.pipe.reward_model.wanted)
    with pytest.raises((ValueError, OSError), match="variant"):
        NRGFlowPipeline.from_pretrained(tmp_path, variant="bf16")


def test_a_dtype_for_each_part_reaches_the_reward_too(subject: Subject, tmp_path: Path) -> None:
    subject.pipe.save_pretrained(tmp_path)
    dtypes = {"transformer": torch.bfloat16, "reward_model": torch.float16, "default": torch.float32}
    loaded = NRGFlowPipeline.from_pretrained(tmp_path, dtype=dtypes)
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.reward_model.dtype == torch.float16
    assert loaded.vae.dtype == torch.float32


def test_several_samples_of_a_prompt_are_that_many(subject: Subject) -> None:
    (name,) = {"num_videos_per_prompt", "num_images_per_prompt"} & set(
        inspect.signature(type(subject.pipe).__call__).parameters
    )
    several = subject.sample(**{name: 2}, seeds=(0, 1))
    assert len(several) == 2
    torch.testing.assert_close(several[:1], subject.sample(seeds=(0,)), atol=1e-4, rtol=1e-3)


def test_a_batch_is_what_its_members_are_alone(subject: Subject) -> None:
    together = subject.sample(PROMPTS, seeds=(0, 1))
    for index, prompt in enumerate(PROMPTS):
        alone = subject.sample(prompt, seeds=(index,))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-3)


def test_dtype_and_device_move_every_component_and_it_still_samples(subject: Subject) -> None:
    subject.pipe.to(torch.bfloat16)
    modules = [part for part in subject.pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {module.dtype for module in modules} == {torch.bfloat16}
    assert subject.pipe.dtype == torch.bfloat16
    assert subject.sample().isfinite().all()
    subject.pipe.to(torch.float32)
    subject.pipe.to("meta")
    assert {module.device.type for module in modules} == {"meta"}


def test_callbacks_are_called_with_the_tensors_they_asked_for(subject: Subject) -> None:
    seen: list[tuple[int, set[str]]] = []

    def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert pipe is subject.pipe
        seen.append((index, set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if index == 2 else {}

    names = list(subject.pipe._callback_tensor_inputs)
    result = subject.sample(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["latents"])
    assert seen == [(index, {"latents"}) for index in range(3)]
    assert "latents" in names
    assert not result.any()
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        subject.sample(callback_on_step_end_tensor_inputs=["reward"])


def test_prompts_are_encoded_by_the_text_parts_alone(subject: Subject) -> None:
    """Encoding with nothing but text encoders, then sampling with nothing but the rest, is sampling at once."""
    pipe = subject.pipe
    expected = subject.sample(**no_negative(pipe))
    text = {name: part for name, part in pipe.components.items() if name.startswith(("text_encoder", "tokenizer"))}
    parameters = inspect.signature(pipe.encode_prompt).parameters
    encoder = NRGFlowPipeline.from_pipe(bare(pipe, text), reward_model=AnyLatents())
    options = {"prompt_2": None, "max_sequence_length": 8, "do_classifier_free_guidance": False}
    with torch.no_grad():
        encoded = encoder.encode_prompt(PROMPTS[0], **{k: v for k, v in options.items() if k in parameters})
    names = {
        "WanPipeline": ("prompt_embeds",),
        "LTXPipeline": ("prompt_embeds", "prompt_attention_mask"),
        "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds"),
    }[type(pipe).__name__]
    rest = {name: part for name, part in pipe.components.items() if name not in text}
    sampler = NRGFlowPipeline.from_pipe(bare(pipe, rest), reward_model=pipe.reward_model)
    result = subject.sample(None, pipe=sampler, **dict(zip(names, encoded, strict=False)), **no_negative(pipe))
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def bare(pipe: Any, parts: dict[str, Any]) -> Any:
    """Return a stock pipeline of the same class that has only these parts."""
    plain = type(pipe).__mro__[2]
    names = [name for name in pipe.components if name != "reward_model"]
    made = plain(**{name: parts.get(name) for name in names})
    made.set_progress_bar_config(disable=True)
    return made


def no_negative(pipe: Any) -> dict[str, Any]:
    return {} if type(pipe).__name__ == "FluxPipeline" else {"guidance_scale": 1.0}


def test_from_pipe_shares_modules_and_upcasts_none(subject: Subject) -> None:
    subject.pipe.transformer.to(torch.bfloat16)
    again = NRGFlowPipeline.from_pipe(subject.pipe)
    for name, part in subject.pipe.components.items():
        assert again.components[name] is part
    assert again.transformer.dtype == torch.bfloat16
    subject.pipe.transformer.to(torch.float32)
    assert torch.equal(subject.sample(pipe=again), subject.sample())


def test_tuples_and_outputs_hold_the_same(subject: Subject) -> None:
    output = subject.sample(return_dict=False)
    named = subject.pipe(
        PROMPTS[0],
        generator=[torch.Generator().manual_seed(0)],
        num_inference_steps=3,
        output_type="latent",
        reward_scale=20.0,
        **subject.size,
    )
    assert torch.equal(named[0], output)


def test_the_class_is_the_stock_one_with_a_reward(subject: Subject) -> None:
    import diffusers

    stock = getattr(diffusers, type(subject.pipe).__name__)
    assert isinstance(subject.pipe, stock)
    assert type(subject.pipe) is not stock
    ours = list(inspect.signature(type(subject.pipe).__call__).parameters)
    theirs = list(inspect.signature(stock.__call__).parameters)
    assert ours[: len(theirs)] == theirs
    expected, optional = type(subject.pipe)._get_signature_keys(type(subject.pipe))
    assert "reward_model" in {*expected, *optional}
    assert "reward_model" in type(subject.pipe)._optional_components
