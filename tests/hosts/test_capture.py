"""Which call of a denoiser a step reads its prompt and size from, when others call it too."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_families import TINY
from tiny_families.base import Tiny
from torch import nn

from nrg_sampler import RewardGuidance, attach

BEST = RewardGuidance.preset("best", scale=5.0)  # evaluated in every step
TOKENS = ("LTX", "FLUX.1", "Qwen-Image")  # whose latents do not tell their height and width


class Spy:
    """A reward that notes what it is given."""

    axes = ("mean",)

    def __init__(self) -> None:
        self.prompts: list[float] = []
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        self.prompts.append(round(conditioning.prompt_embeds.float().mean().item(), 2))
        self.shapes.add(tuple(latents.shape))
        return ((1 - sigma) * latents.mean(dim=(1, 2, 3, 4)))[:, None]


def seen_alone(name: str, **changes: Any) -> Spy:
    tiny, spy = TINY[name](), Spy()
    with attach(tiny.pipe, spy, BEST):
        tiny.sample(**changes)
    return spy


def fail_once(tiny: Tiny) -> None:
    """Let the first call of the denoiser run out of memory."""
    whole, calls = tiny.pipe.transformer.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args, **kwargs)

    tiny.pipe.transformer.forward = forward


def portrait(tiny: Tiny) -> dict[str, Any]:
    return {**tiny.size, "height": tiny.size["width"], "width": tiny.size["height"]}


def larger(tiny: Tiny) -> dict[str, Any]:
    return {**tiny.size, "height": 2 * tiny.size["height"], "width": 2 * tiny.size["width"]}


@pytest.mark.parametrize("size", [portrait, larger])
@pytest.mark.parametrize("name", TOKENS)
def test_a_failed_run_leaves_no_size_behind(name: str, size: Callable[[Tiny], dict[str, Any]]) -> None:
    tiny, spy = TINY[name](), Spy()
    fail_once(tiny)
    with attach(tiny.pipe, spy, BEST):
        with pytest.raises(torch.OutOfMemoryError):
            tiny.sample(**size(tiny))
        tiny.sample()
    assert spy.shapes == seen_alone(name).shapes


def test_a_failed_run_leaves_no_prompt_behind() -> None:
    """Both runs begin with the same latents, so these do not tell them apart."""
    tiny, spy, settings = TINY["Wan"](), Spy(), {"num_inference_steps": 4}
    fail_once(tiny)
    with attach(tiny.pipe, spy, BEST):
        with pytest.raises(torch.OutOfMemoryError):
            tiny.sample(prompt_embeds=tiny.arguments["prompt_embeds"] + 7, **settings)
        tiny.sample(**settings)
    assert spy.prompts == seen_alone("Wan", **settings).prompts


@pytest.mark.parametrize("name", ["Wan", "LTX", "FLUX.1"])
def test_another_pipeline_with_the_same_denoiser_is_not_mistaken_for_this_one(name: str) -> None:
    tiny, spy = TINY[name](), Spy()
    other = copy.copy(tiny.pipe)
    other.scheduler = copy.deepcopy(tiny.pipe.scheduler)
    arguments = {**tiny.arguments, "prompt_embeds": tiny.arguments["prompt_embeds"] + 7}
    with attach(tiny.pipe, spy, BEST):
        Tiny(other, arguments, tiny.unpack, portrait(tiny)).sample()
        tiny.sample()
    assert (spy.prompts, spy.shapes) == (seen_alone(name).prompts, seen_alone(name).shapes)


@pytest.mark.parametrize("timestep", [500.0, 37.0])
def test_a_callback_may_evaluate_the_denoiser_with_another_prompt(timestep: float) -> None:
    tiny, spy = TINY["Wan"](), Spy()

    def look(pipe: Any, index: int, at: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        prompt = torch.full_like(tensors["prompt_embeds"], 9.0)
        pipe.transformer(tensors["latents"], torch.tensor([timestep]), prompt)
        return tensors

    names = ["latents", "prompt_embeds"]
    with attach(tiny.pipe, spy, BEST):
        tiny.sample(num_inference_steps=5, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert spy.prompts == seen_alone("Wan", num_inference_steps=5).prompts


def test_a_callback_may_sample_another_clip_with_the_same_denoiser() -> None:
    tiny, spy = TINY["Wan"](), Spy()
    other = copy.copy(tiny.pipe)
    other.scheduler = copy.deepcopy(tiny.pipe.scheduler)
    second = Tiny(other, {**tiny.arguments, "prompt_embeds": tiny.arguments["prompt_embeds"] + 7}, size=tiny.size)

    def preview(pipe: Any, index: int, at: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        second.sample(num_inference_steps=2)
        return {}

    with attach(tiny.pipe, spy, BEST):
        tiny.sample(num_inference_steps=5, callback_on_step_end=preview)
    assert spy.prompts == seen_alone("Wan", num_inference_steps=5).prompts


def test_threads_that_share_a_denoiser_keep_their_prompts() -> None:
    tiny, spies = TINY["Wan"](), {0: Spy(), 10: Spy()}
    ready = threading.Barrier(2)

    def work(shift: int) -> None:
        pipe = copy.copy(tiny.pipe)
        pipe.scheduler = copy.deepcopy(tiny.pipe.scheduler)
        arguments = {**tiny.arguments, "prompt_embeds": tiny.arguments["prompt_embeds"] + shift}
        with attach(pipe, spies[shift], BEST):
            ready.wait()
            Tiny(pipe, arguments, size=tiny.size).sample(num_inference_steps=12)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in spies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = seen_alone("Wan", num_inference_steps=12).prompts
    assert spies[0].prompts == alone
    assert spies[10].prompts == pytest.approx([prompt + 10 for prompt in alone], abs=0.02)


class Opaque(nn.Module):
    """A wrapper that names neither its arguments nor, as PEFT and DDP do, the module that takes them."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.inside = [denoiser]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside[0](*args, **kwargs)


def with_adapters(denoiser: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(denoiser, LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=True))


@pytest.mark.parametrize("name", ["Wan", "Stable Diffusion 3", "HunyuanVideo", *TOKENS, "Wan image-to-video"])
def test_a_wrapped_denoiser_hands_over_prompt_and_size(name: str) -> None:
    tiny, spy = TINY[name](), Spy()
    tiny.pipe.transformer = with_adapters(tiny.pipe.transformer)
    with attach(tiny.pipe, spy, BEST):
        tiny.sample()
    alone = seen_alone(name)
    assert (spy.prompts, spy.shapes) == (alone.prompts, alone.shapes)


def step_by_hand(tiny: Tiny, call: Callable[[Any, torch.Tensor], Any], steps: int = 3) -> Spy:
    """Attach, and take steps after whatever ``call(pipe, latents)`` does."""
    spy, scheduler = Spy(), tiny.pipe.scheduler
    scheduler.set_timesteps(4)
    latents = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    with attach(tiny.pipe, spy, BEST), torch.no_grad():
        for timestep in scheduler.timesteps[:steps]:
            call(tiny.pipe, latents)
            latents = scheduler.step(torch.ones_like(latents), timestep, latents, return_dict=False)[0]
    return spy


def embeds(tiny: Tiny) -> torch.Tensor:
    found: torch.Tensor = tiny.arguments["prompt_embeds"]
    return found


def test_arguments_in_order_are_named_through_a_wrapper_or_refused_with_its_name() -> None:
    tiny = TINY["Wan"]()
    denoiser = tiny.pipe.transformer
    tiny.pipe.transformer = with_adapters(denoiser)
    prompt, time = embeds(tiny), torch.tensor([500.0])
    spy = step_by_hand(tiny, lambda pipe, latents: pipe.transformer(latents, time, prompt))
    assert set(spy.prompts) == {round(prompt.mean().item(), 2)}
    tiny.pipe.transformer = Opaque(denoiser)
    with pytest.raises(
        ValueError, match=r"Expected `encoder_hidden_states` among the arguments .* but Opaque was called"
    ):
        step_by_hand(tiny, lambda pipe, latents: pipe.transformer(latents, time, prompt))


def test_a_step_without_a_call_has_the_prompt_of_the_step_before() -> None:
    tiny, calls = TINY["Wan"](), []

    def every_second(pipe: Any, latents: torch.Tensor) -> None:
        if not len(calls) % 2:
            pipe.transformer(latents, torch.tensor([500.0]), embeds(tiny))
        calls.append(None)

    spy = step_by_hand(tiny, every_second)
    assert len(spy.prompts) == 2
    assert len(set(spy.prompts)) == 1


def test_a_denoiser_that_was_never_called_is_no_reason_to_guide_without_a_prompt() -> None:
    with pytest.raises(ValueError, match="but no denoiser was called with the latents of this step"):
        step_by_hand(TINY["Wan"](), lambda pipe, latents: None)


def test_a_call_without_a_prompt_is_refused() -> None:
    tiny = TINY["Wan"]()
    tiny.pipe.transformer.forward = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="Expected `encoder_hidden_states` among the arguments of the denoiser"):
        step_by_hand(tiny, lambda pipe, latents: pipe.transformer(hidden_states=latents, timestep=torch.ones(1)))


def test_a_step_with_latents_that_the_denoiser_never_saw_is_refused() -> None:
    tiny = TINY["Wan"]()
    with pytest.raises(ValueError, match=r"called with the latents of the step, \(1, 4, 3, 2, 2\), but none of its 1"):
        step_by_hand(tiny, lambda pipe, latents: pipe.transformer(latents.roll(1), torch.ones(1), embeds(tiny)))
