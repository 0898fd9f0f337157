"""The text of the prompts reaches a reward: that of the pipeline's own call, and of no other."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import pytest
import torch
from tiny import TowardTarget, sample
from tiny_families import TINY
from tiny_text import COUNTS, PIPELINES, MayReadText, ReadsText, built, run

from nrg_sampler import NRGFlowPipeline, RewardGuidance, attach
from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.hosts.prompts import PromptedCall

BEST = RewardGuidance.preset("best")
A, B = "a red circle", "a blue square moving left"


@pytest.mark.parametrize("name", PIPELINES)
def test_each_sample_has_the_prompt_it_was_called_with(name: str) -> None:
    pipe, settings = built(name)
    count = COUNTS.get(name, "num_videos_per_prompt")
    reward = ReadsText()
    with attach(pipe, reward, BEST):
        run(pipe, settings, A) if next(iter(inspect.signature(pipe).parameters)) == "prompt" else None
        run(pipe, settings, prompt=[A, B])
        run(pipe, settings, prompt=A, **{count: 2})
        run(pipe, settings, prompt=[A, B], **{count: 2})
    assert list(dict.fromkeys(reward.seen)) == [(A,), (A, B), (A, A), (A, A, B, B)]


@pytest.mark.parametrize("name", PIPELINES)
def test_rows_of_text_are_rows_of_features(name: str) -> None:
    """Pipelines repeat each prompt's features in the same order."""
    pipe, settings = built(name)
    count = COUNTS.get(name, "num_videos_per_prompt")
    pairs: set[tuple[str, float]] = set()

    class Pairs(ReadsText):
        def __call__(self, latents: Any, sigma: Any, conditioning: Any) -> Any:
            sums = conditioning.prompt_embeds.float().sum(dim=(1, 2)).tolist()
            pairs.update((text, round(value, 3)) for text, value in zip(conditioning.prompts, sums, strict=True))
            return super().__call__(latents, sigma, conditioning)

    with attach(pipe, Pairs(), BEST):
        run(pipe, settings, prompt=[A, B], **{count: 2})
    assert len(pairs) == 2


@pytest.mark.parametrize("name", ["FLUX.1", "Stable Diffusion 3", "HunyuanVideo"])
def test_of_several_prompts_the_main_one_counts(name: str) -> None:
    pipe, settings = built(name)
    reward = ReadsText()
    with attach(pipe, reward, BEST):
        run(pipe, settings, prompt=A, prompt_2=B)
    assert set(reward.seen) == {(A,)}


@pytest.mark.parametrize("name", ["Wan", "LTX", "FLUX.1", "Stable Diffusion 3", "HunyuanVideo"])
def test_features_alone_need_prompts(name: str) -> None:
    tiny, reward = TINY[name](), ReadsText()
    sentence = (
        r"Expected the text of the prompts for ReadsText, which reads it, but the pipeline was called without a "
        r"`prompt` of texts; pass `attach\(..., prompts=\[...\]\)`"
    )
    with pytest.raises(ValueError, match=sentence), attach(tiny.pipe, reward, BEST):
        tiny.sample()
    with attach(tiny.pipe, reward, BEST, prompts=[A]):
        tiny.sample()
        if name not in ("LTX", "Stable Diffusion 3"):  # which do not repeat features that they are given
            tiny.sample(**{COUNTS.get(name, "num_videos_per_prompt"): 2})
    assert {text for texts in reward.seen for text in texts or [None]} == {A}


@pytest.mark.parametrize("name", ["Wan", "LTX", "FLUX.1"])
def test_a_reward_that_may_do_without_text_is_called_without(name: str) -> None:
    tiny, reward = TINY[name](), MayReadText()
    with attach(tiny.pipe, reward, BEST):
        tiny.sample()
    assert set(reward.seen) == {None}


def test_prompts_that_were_handed_over_take_the_place_of_the_calls_own(wan: Any) -> None:
    reward = ReadsText()
    with attach(wan, reward, BEST, prompts=["circle", "square"]):
        sample(wan, [A, B])
        with pytest.raises(
            ValueError, match=r"as many texts handed over as the pipeline is called with, 1, but got 2"
        ):
            sample(wan, A)
    assert set(reward.seen) == {("circle", "square")}


@pytest.mark.parametrize("prompts", [[], [1], {"a": 1}, [A, None]])
def test_what_is_no_text_is_refused(wan: Any, prompts: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"Expected a text or a list of texts as prompts, but got"),
        attach(wan, ReadsText(), prompts=prompts),
    ):
        pass


def test_a_number_of_features_that_fits_no_prompts_is_refused(wan: Any) -> None:
    with torch.no_grad():
        embeds, _ = wan.encode_prompt([A, A, B], max_sequence_length=8)
    sentence = r"one prompt for each of the 3 samples, but got 2 prompts for 1 samples each"
    with pytest.raises(ValueError, match=sentence), attach(wan, ReadsText(), BEST, prompts=[A, B]):
        wan(prompt_embeds=embeds, guidance_scale=1.0, height=16, width=16, num_frames=3, num_inference_steps=2)


@pytest.mark.parametrize(
    ("prompts", "each", "batch", "expected"),
    [
        ((A,), 1, 3, (A, A, A)),
        ((A, B), 1, 2, (A, B)),
        ((A, B), 2, 4, (A, A, B, B)),
        ((A, B), 2, 2, None),  # a run of some of the samples, nobody knows which
        ((A, B), 1, 4, None),
        ((A, B), 1, 1, None),
        (None, 1, 2, None),
    ],
)
def test_prompts_of_samples(prompts: Any, each: int, batch: int, expected: Any) -> None:
    call = PromptedCall(prompts, each)
    assert call.of_samples(batch, needed=False) == expected
    if prompts is not None and expected is None:
        for strict, needed in ((call, True), (PromptedCall(("a",) * 5, each, handed_over=True), False)):
            with pytest.raises(ValueError, match=rf"one prompt for each of the {batch} samples"):
                strict.of_samples(batch, needed)


def test_each_call_in_a_block_has_its_own_prompt_also_after_one_that_failed(wan: Any) -> None:
    def fail(pipe: Any, index: int, *args: Any) -> dict[str, Any]:
        if index == 1:
            raise KeyboardInterrupt
        return {}

    reward = ReadsText()
    with attach(wan, reward, scale=5.0):
        with pytest.raises(KeyboardInterrupt):
            sample(wan, A, callback_on_step_end=fail)
        assert reward.seen == [(A,)]
        sample(wan, B)
        assert set(reward.seen[1:]) == {(B,)}
        embeds, negative = (torch.zeros(1, 8, 16) for _ in range(2))
        with pytest.raises(ValueError, match=r"Expected the text of the prompts"):
            sample(wan, None, prompt_embeds=embeds, negative_prompt_embeds=negative)


def test_another_call_with_the_same_latents_and_another_text_is_another_run(wan: Any) -> None:
    """The direction of the first must not be applied again, nor its prompt be read."""
    reward = ReadsText()
    with attach(wan, reward, scale=200.0, max_push=None):
        together = [sample(wan, text) for text in (A, B)]
    for text, latents in zip((A, B), together, strict=True):
        with attach(wan, ReadsText(), scale=200.0, max_push=None):
            assert torch.equal(sample(wan, text), latents)


def test_a_call_that_is_not_seen_leaves_no_prompt(wan: Any) -> None:
    call = wan.__call__  # of the pipeline before it is attached
    settings = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 2, "max_sequence_length": 8}
    with attach(wan, ReadsText(), BEST):
        sample(wan, A)
        with pytest.raises(ValueError, match=r"but no call of the pipeline with a text was seen; pass `attach"):
            call(B, output_type="latent", **settings)
    with attach(wan, ReadsText(), BEST, prompts=B):
        call(B, output_type="latent", **settings)


def test_threads_have_their_own_prompts(wan: Any) -> None:
    """Two pipelines of the same components, attached in two threads, wait for each other after every step."""
    reward, other = ReadsText(), copy.copy(wan)
    other.scheduler = copy.deepcopy(wan.scheduler)
    others, barrier = ReadsText(), threading.Barrier(2)

    def in_turn(*args: Any) -> dict[str, Any]:
        barrier.wait(timeout=60)
        return {}

    def work(pipe: Any, own: ReadsText, text: str) -> None:
        with attach(pipe, own, BEST):
            sample(pipe, text, callback_on_step_end=in_turn)

    threads = [threading.Thread(target=work, args=each) for each in ((wan, reward, A), (other, others, [B, B]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (set(reward.seen), set(others.seen)) == ({(A,)}, {(B, B)})
    assert len(reward.seen) == len(others.seen) == 3


def test_an_attached_pipeline_may_be_called_in_another_thread(wan: Any) -> None:
    reward = ReadsText()
    with attach(wan, reward, BEST):
        for text in (A, B):
            thread = threading.Thread(target=sample, args=(wan, text))
            thread.start()
            thread.join()
    assert list(dict.fromkeys(reward.seen)) == [(A,), (B,)]


def test_a_call_inside_another_has_its_own_prompt(wan: Any) -> None:
    reward, inner, done = ReadsText(), ReadsText(), []
    other = copy.copy(wan)
    other.scheduler = copy.deepcopy(wan.scheduler)

    def nested(pipe: Any, index: int, *args: Any) -> dict[str, Any]:
        with attach(other, inner, BEST):
            done.append(sample(other, B))
        return {}

    with attach(wan, reward, BEST):
        guided = sample(wan, A, callback_on_step_end=nested)
    with attach(wan, ReadsText(), BEST):
        assert torch.equal(sample(wan, A), guided)
        assert torch.equal(sample(wan, B), done[0])
    assert (set(reward.seen), set(inner.seen)) == ({(A,)}, {(B,)})


def test_a_call_of_the_same_pipeline_inside_its_own_has_its_own_prompt(wan: Any) -> None:
    """In the last step, after which the outer call needs the scheduler no more."""
    reward, seen = ReadsText(), []

    def nested(pipe: Any, index: int, *args: Any) -> dict[str, Any]:
        if index == 3 and not seen:
            seen.append(list(reward.seen))
            reward.seen.clear()
            sample(pipe, [B, A])
        return {}

    with attach(wan, reward, BEST):
        sample(wan, A, callback_on_step_end=nested)
    assert (set(seen[0]), set(reward.seen)) == ({(A,)}, {(B, A)})


def test_prompts_follow_the_samples_that_a_callback_keeps(wan: Any) -> None:
    reward, memory, following = ReadsText(), DirectionMemory(), True

    def keep(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index != 1:
            return {}
        rows = torch.tensor([2, 0])
        if following:
            memory.keep(rows)
        return {name: tensor[rows] for name, tensor in tensors.items()}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    thinned = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": names}
    with attach(wan, reward, BEST, memory=memory):
        sample(wan, [A, B, "a square"], **thinned)
    assert list(dict.fromkeys(reward.seen)) == [(A, B, "a square"), ("a square", A)]
    following = False
    with (
        attach(wan, ReadsText(), BEST),
        pytest.raises(ValueError, match=r"the batch of 3 samples that the prompts are of, but .* goes on with 2"),
    ):
        sample(wan, [A, B, "a square"], **thinned)
    with attach(wan, MayReadText(), BEST) as trace:  # nothing but the text is missing
        sample(wan, [A, B, "a square"], **thinned)
    assert len(trace.steps) == 4


def test_scale_zero_and_leaving_the_block_change_nothing(wan: Any) -> None:
    before, names = sample(wan, A), set(vars(wan))
    with attach(wan, ReadsText(), scale=0):
        assert type(wan) is type(copy.copy(wan))
        assert torch.equal(sample(wan, A), before)
    kind = type(wan)
    with attach(wan, ReadsText(), BEST):
        assert isinstance(wan, kind)
        sample(wan, A)
    with pytest.raises(KeyError), attach(wan, ReadsText()):
        raise KeyError
    assert (type(wan), set(vars(wan))) == (kind, names)
    assert torch.equal(sample(wan, A), before)


def test_copies_of_an_attached_pipeline_are_plain(wan: Any) -> None:
    kind, reward = type(wan), TowardTarget()
    signature = inspect.signature(wan.__call__)
    with attach(wan, reward):
        assert inspect.signature(wan.__call__) == signature
        assert type(wan).__call__.__wrapped__ is kind.__call__.__wrapped__
        assert type(copy.copy(wan)) is kind
        assert "_calls_under_way" not in vars(copy.deepcopy(wan))
        assert NRGFlowPipeline.from_pipe(wan, reward_model=reward).__class__.__mro__[2] is kind
        assert type(pickle.loads(pickle.dumps(wan))) is kind
        sample(wan)
    assert type(wan) is kind


def test_a_call_that_does_not_fit_is_the_pipelines_to_refuse(wan: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"), attach(wan, ReadsText()):
        wan(A, nonsense=3)


class Slotted:
    """What cannot be called and has no attributes beyond its slots: a host with a sampling loop of its own."""

    __slots__ = ("__weakref__", "scheduler", "transformer")


@pytest.mark.filterwarnings("ignore::nrg_sampler.guidance.trace.GuidanceWarning")  # of an unknown pipeline
def test_a_host_that_is_not_called_takes_prompts(wan: Any) -> None:
    host, reward = Slotted(), ReadsText()
    host.scheduler, host.transformer = wan.scheduler, wan.transformer
    latents = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with attach(host, reward, BEST, prompts=A), torch.no_grad():
        host.scheduler.set_timesteps(3)
        for timestep in host.scheduler.timesteps:
            given = {"timestep": timestep.expand(1), "encoder_hidden_states": torch.zeros(1, 4, 16)}
            velocity = host.transformer(hidden_states=latents, **given, return_dict=False)[0]
            latents = host.scheduler.step(velocity, timestep, latents).prev_sample
    assert set(reward.seen) == {(A,)}


def test_a_class_that_is_exchanged_in_the_block_stays(wan: Any) -> None:
    with attach(wan, ReadsText(), BEST):
        wan.__class__ = type("Mine", (type(wan),), {})
        sample(wan, A)
    assert type(wan).__name__ == "Mine"
    sample(wan, A)
