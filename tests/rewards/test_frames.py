"""A few latent frames instead of all: which, whose turn it is, and that they look as they do in the whole clip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import sample
from tiny_families import TINY
from torch import Tensor, nn

from nrg_sampler import Conditioning, RewardGuidance, attach, guided_velocity
from nrg_sampler.cost.counting import MemoryCounter
from nrg_sampler.guidance.memory import DirectionMemory
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.step import reward_direction
from nrg_sampler.rewards import PixelReward
from nrg_sampler.rewards.decoding import decoded, frames_a_latent, stretches
from nrg_sampler.rewards.frames import chosen_frames, read_frames
from nrg_sampler.runs.recipe import Recipe

COUNT = 6


class Light(nn.Module):
    """Brightness of the frames that are shown, with their number and rate kept."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[int, float | None]] = []

    def forward(self, frames: Tensor, fps: float | None = None) -> Tensor:
        self.shown.append((frames.shape[2], fps))
        return frames.square().mean(dim=(1, 2, 3, 4))[:, None]


def light(vae: Any, **options: Any) -> PixelReward:
    return PixelReward(Light(), vae, ("light",), **options)


@pytest.fixture
def clean() -> Tensor:
    return torch.randn(1, 16, COUNT, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 21])
def test_in_turns_every_frame_comes_once_and_a_few_turns_are_spread(count: int) -> None:
    places = [chosen_frames("turns", count, turn)[0].start for turn in range(count)]
    assert sorted(places) == list(range(count))
    if count > 6:
        assert max(places[:4]) - min(places[:4]) > count / 3


def test_choices_are_the_frames_they_name() -> None:
    found = {name: list(chosen_frames(name, 5, 1)[0]) for name in ("all", "first", "middle", "every:3", "every:9")}
    assert found == {"all": [0, 1, 2, 3, 4], "first": [0], "middle": [2], "every:3": [1, 4], "every:9": [1]}
    drawn = [chosen_frames("random", 5, turn)[0] for turn in range(40)]
    assert {len(frames) for frames in drawn} == {1} and {frames.start for frames in drawn} == set(range(5))
    assert drawn == [chosen_frames("random", 5, turn)[0] for turn in range(40)]


def test_a_crop_takes_turns_after_the_frames() -> None:
    assert [chosen_frames("turns", 3, turn)[1] for turn in (0, 2, 3, 6)] == [0, 0, 1, 2]
    assert chosen_frames("middle", 3, 4)[1] == 4


def test_names_are_read_whatever_their_case_and_refused_by_one_sentence() -> None:
    assert [read_frames("frames", text) for text in (" Turns", "every:04", "every:1", None)] == [
        "turns", "every:4", "all", None,
    ]  # fmt: skip
    for wrong in ("everyone", "every:", "every:-1", "every:1.5", 4, ["all"], ""):
        with pytest.raises(ValueError, match=re.escape(f"every:N, but got {wrong!r}.")):
            read_frames("frames", wrong)
    with pytest.raises(ValueError, match="Expected `recommended_frames` to be all"):
        light(nn.Linear(1, 1), recommended_frames="some")


@pytest.mark.parametrize("chosen", [range(1), range(3, 4), range(5, 6), range(1, 6, 2), range(0, 6, 5)])
def test_with_enough_context_a_frame_looks_as_in_the_whole_clip(
    components: dict[str, Any], clean: Tensor, chosen: range
) -> None:
    vae = components["vae"]
    whole = decoded(vae, clean)
    apart = frames_a_latent(vae)
    assert whole.shape[2] == (COUNT - 1) * apart + 1
    shown = light(vae, context=COUNT).frames(clean, chosen)
    torch.testing.assert_close(shown, whole[:, :, [apart * index for index in chosen]])


def test_without_context_it_looks_otherwise(components: dict[str, Any], clean: Tensor) -> None:
    vae = components["vae"]
    last = decoded(vae, clean)[:, :, -1:]
    off = [(light(vae, context=n).frames(clean, range(5, 6)) - last).abs().max().item() for n in (0, 5)]
    assert off[0] > 0.1 and off[1] < 1e-5


def test_far_frames_are_decoded_apart_and_near_ones_together() -> None:
    vae = nn.Sequential(nn.Conv3d(1, 1, 1))
    found = [(part.start, part.stop, part.shown) for part in stretches(range(1, 12, 5), 12, vae, 2)]
    assert found == [(0, 2, (1,)), (4, 7, (6,)), (9, 12, (11,))]
    found = [(part.start, part.stop, part.shown) for part in stretches(range(1, 8, 3), 12, vae, 2)]
    assert found == [(0, 8, (1, 4, 7))]


def test_the_context_of_a_decoder_that_is_not_causal_lies_on_both_sides() -> None:
    vae = nn.Sequential(nn.Conv3d(1, 1, 1))
    vae.config = SimpleNamespace(decoder_causal=False)
    (part,) = stretches(range(5, 6), 12, vae, 2)
    assert (part.start, part.stop, part.shown) == (3, 8, (5,))
    frames = torch.arange(9.0)  # of five latent frames, two for each but the first
    assert part.pick(frames.view(1, 1, 9, 1, 1)).item() == 4


def test_pictures_need_no_context() -> None:
    vae = nn.Sequential(nn.Conv2d(1, 1, 1))
    (part,) = stretches(range(3, 4), 6, vae, 4)
    assert (part.start, part.stop) == (3, 4)


def test_the_gradient_is_that_of_the_frames_and_lies_on_them(components: dict[str, Any], clean: Tensor) -> None:
    reward = light(components["vae"], noise_aware=False)
    settings = RewardGuidance.preset("best", frames="middle", calibrated=False)
    noisy, velocity = clean, torch.randn_like(clean)
    found = reward_direction(resolve(settings, reward), noisy, velocity, 0.4, Conditioning(), 3).value
    place = COUNT // 2
    assert found[:, :, place].abs().max() > 0
    assert not found[:, :, [index for index in range(COUNT) if index != place]].any()
    step, toward = 1e-2, found / found.norm()

    def score(at: Tensor) -> Tensor:
        return reward(at, torch.tensor([0.4]), Conditioning(velocity=velocity, frames=range(place, place + 1)))

    rise = (score(noisy + step * toward) - score(noisy - step * toward)) / (2 * step)
    torch.testing.assert_close(rise.item(), found.norm().item(), rtol=1e-2, atol=0)


def test_the_rate_is_that_of_the_frames_that_are_shown(components: dict[str, Any], clean: Tensor) -> None:
    reward = light(components["vae"])
    for frames, shown in ((None, (11, 16.0)), (range(0, 6, 2), (3, 4.0)), (range(6), (11, 16.0))):
        reward(clean, torch.zeros(1), Conditioning(fps=16.0, frames=frames))
        rate = shown[1] if frames != range(6) else 16.0 / frames_a_latent(components["vae"])
        assert reward.judge.shown[-1] == (shown[0], rate)


def test_one_frame_takes_less_memory_than_all(components: dict[str, Any]) -> None:
    clean = torch.randn(1, 16, 21, 4, 4)

    def peak(frames: str) -> int:
        resolved = resolve(RewardGuidance.preset("best", frames=frames), light(components["vae"]))
        with MemoryCounter() as memory:
            reward_direction(resolved, clean, clean, 0.5, Conditioning(), 0)
        return memory.peak_bytes

    assert peak("middle") < 0.5 * peak("all")


@pytest.mark.parametrize("frames", ["first", "turns", "every:2", None])
def test_a_pipeline_is_guided_by_them(wan: Any, frames: str | None) -> None:
    reward = light(wan.vae, recommended_frames="random")

    @torch.no_grad()
    def score(latents: Tensor) -> float:
        return reward.score_frames(reward.frames(latents)).item()

    plain = sample(wan)
    with attach(wan, reward, frames=frames, scale=200.0, max_push=None) as trace:
        guided = sample(wan)
    assert score(guided) > score(plain)
    assert trace.summary()["guided"] > 0
    assert {count for count, _ in reward.judge.shown[:-2]} == {1}


def test_a_clip_that_is_cropped_only_is_shown_all_its_frames(wan: Any) -> None:
    reward = light(wan.vae)
    with attach(wan, reward, crop=0.5, scale=50.0):
        latents = sample(wan)
    assert reward.judge.shown[0][0] == (latents.shape[2] - 1) * 2 + 1


def test_a_given_frame_is_not_the_one_to_look_at() -> None:
    tiny = TINY["LTX image-to-video"]()
    seen: list[Sequence[int]] = []

    class Watching(Light):
        pass

    reward = PixelReward(Watching(), tiny.pipe.vae, ("light",))
    original = reward.frames

    def frames(clean: Tensor, chosen: range | None = None, decoder: Any = None) -> Tensor:
        assert chosen is not None
        seen.append((clean.shape[2], *chosen))
        return original(clean, chosen, decoder)

    reward.frames = frames  # type: ignore[method-assign]
    with attach(tiny.pipe, reward, frames="turns", scale=5.0):
        tiny.sample()
    counts = {count for count, _ in seen}
    assert len(counts) == 1
    assert all(0 < place < count for count, place in seen)
    with (
        pytest.raises(ValueError, match="which is given a frame, but got 'first' and 1"),
        attach(tiny.pipe, reward, frames="first"),
    ):
        pass


def test_a_loop_of_ones_own_has_to_say_which_step_it_is(components: dict[str, Any], clean: Tensor) -> None:
    reward = light(components["vae"], recommended_frames="turns")
    with pytest.raises(ValueError, match=r"`step_index` and `num_inference_steps` .* frames='turns'"):
        guided_velocity(clean, clean, 0.5, reward)
    memory = DirectionMemory()
    guided = guided_velocity(clean, clean, 0.5, reward, step_index=1, num_inference_steps=4, memory=memory)
    assert (guided != clean).any()


def test_a_recipe_keeps_the_choice_and_reads_what_it_was_called_before(tmp_path: Path) -> None:
    sampling: dict[str, Any] = {"num_inference_steps": 2}
    recipe = Recipe("a", RewardGuidance(frames="every:4"), sampling, "shapes", None, "cpu", "float32", 8.0)
    entries = recipe.to_entries()
    assert entries["guidance"]["frames"] == "every:4"
    assert Recipe.from_entries(entries) == recipe
    del entries["guidance"]["frames"]
    entries["guidance"]["frame_stride"] = 4
    assert Recipe.from_entries(entries) == recipe
