"""Look-ahead guidance on tiny pipelines: it pulls toward what scored high, and leaves everything else alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tiny import sample, schedulers
from tiny_families import TINY

from nrg_sampler import GuidanceWarning, NRGFlowPipeline, RewardGuidance, attach
from nrg_sampler.hosts.finished import last_step
from nrg_sampler.lookahead import Lookahead, Looks, lookahead, sample_looks
from nrg_sampler.rewards.base import Conditioning

pytestmark = [
    # of diffusers and numpy, about themselves
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:std\\(\\). degrees of freedom:UserWarning"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
]

STRONG = Lookahead(samples=3, steps=2, scale=2.0, sharpness=1e4)
ARGUMENTS = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 4, "max_sequence_length": 8}


def brightness(clips: torch.Tensor) -> torch.Tensor:
    return clips.mean(dim=(1, 2, 3, 4))


class Level:
    """The mean of the expected clean latents, without end: whatever pulls toward it raises it."""

    axes = ("level",)

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        return ((1 - sigma) * latents.mean(dim=(1, 2, 3, 4)))[:, None]


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++", "heun"])
def test_the_clip_moves_toward_the_sample_that_scored_high(wan: Any, solver: str) -> None:
    wan.scheduler = schedulers()[solver]
    plain = sample(wan)
    looks = sample_looks(wan, "a red circle", STRONG, brightness, **ARGUMENTS)
    assert looks.latents.shape == (1, 3, *plain.shape[1:])
    for favourite in range(3):
        picks = [-1.0] * 3
        picks[favourite] = 1.0
        with lookahead(wan, looks=looks.picked(picks), settings=STRONG) as run:
            pulled = sample(wan)
        before, after = ((looks.latents[0] - x).flatten(1).norm(dim=1) for x in (plain, pulled))
        assert (after - before).argmin() == favourite
        assert (after - before)[favourite] < 0
        assert run.cost == 1.0
    assert torch.equal(sample(wan), plain)


def test_a_judge_without_gradients_guides(wan: Any) -> None:
    @torch.no_grad()
    def judge(clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert clips.shape == (1, 3, 3, 16, 16)
        assert prompts == ["a red circle"]
        return torch.tensor([round(float(brightness(clips)), 9)])

    with lookahead(wan, judge, STRONG) as run:
        pulled = sample(wan)
    assert run.looks is not None
    assert run.cost == 1 + 3 * 2 / 4
    best = run.looks.scores[0].argmax()
    before, after = ((run.looks.latents[0] - x).flatten(1).norm(dim=1) for x in (sample(wan), pulled))
    assert (after - before).argmin() == best
    assert [step.step_index for step in run.trace.steps] == [0, 1, 2, 3]
    assert run.trace.steps[0].measurement is not None  # pure noise too
    assert "3 look-ahead samples, scored" in str(run)
    assert "K about 2.50" in str(run)


@pytest.mark.parametrize("nothing", [{"scale": 0.0}, {"sharpness": 0.0}])
def test_without_strength_it_is_bit_exact_and_samples_nothing(wan: Any, nothing: dict[str, float]) -> None:
    plain, calls = sample(wan), []
    with lookahead(wan, lambda clips: calls.append(clips), **nothing) as run:
        assert torch.equal(sample(wan), plain)
    assert not calls
    assert run.cost == 1.0
    assert "No look-ahead" in str(run)
    assert type(wan).__name__ == "WanPipeline"


def test_samples_that_score_the_same_pull_nowhere_and_that_is_said(wan: Any) -> None:
    plain = sample(wan)
    said = pytest.warns(GuidanceWarning, match="All look-ahead samples scored the same")
    with said, lookahead(wan, lambda clips: torch.ones(len(clips)), STRONG) as run:
        assert torch.equal(sample(wan), plain)
    assert "scored the same" in str(run)


def test_the_latents_of_the_samples_are_what_the_pipeline_returns(wan: Any) -> None:
    looks = sample_looks(wan, "a red circle", STRONG, brightness, seeds=[[5, 6, 7]], **ARGUMENTS)
    singles = torch.cat([sample(wan, seed=seed, num_inference_steps=2) for seed in (5, 6, 7)])
    torch.testing.assert_close(looks.latents[0], singles)


def test_several_prompts_and_videos_of_each_are_pulled_as_alone(wan: Any) -> None:
    seeds = [[5, 6, 7], [8, 9, 10]]
    prompts = ["a red circle", "a blue square"]
    with lookahead(wan, brightness, STRONG, seeds=seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        together = wan(
            prompts, num_videos_per_prompt=2, generator=generators, output_type="latent", **ARGUMENTS
        ).frames
    for index, prompt in enumerate(prompts):
        for video in range(2):
            with lookahead(wan, brightness, STRONG, seeds=seeds[index : index + 1]):
                alone = sample(wan, prompt, seed=2 * index + video)
            torch.testing.assert_close(together[2 * index + video], alone[0], rtol=1e-3, atol=1e-4)


def test_a_reward_scores_without_its_gradient_and_its_gradient_may_guide_beside(wan: Any) -> None:
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=Level())
    pipe.set_progress_bar_config(disable=True)
    gradient = RewardGuidance.preset("best", scale=2000.0)
    results = {}
    for name, strength in (("plain", 0.0), ("pulled", 2.0)):
        for guided in (False, True):
            with lookahead(pipe, settings=STRONG, scale=strength) as run:
                results[name, guided] = sample(pipe, reward_guidance=gradient if guided else RewardGuidance(scale=0))
            assert (run.trace is not None) == bool(strength)
            if guided:
                assert len(pipe.trace.steps) == 4
    assert torch.mean(results["pulled", False]) > torch.mean(results["plain", False])
    assert torch.mean(results["pulled", True]) > torch.mean(results["pulled", False])
    assert not torch.equal(results["pulled", True], results["plain", True])
    with (
        attach(wan, Level(), gradient) as trace,
        lookahead(wan, reward=Level(), settings=STRONG) as run,
    ):
        beside = sample(wan)
    assert run.trace.summary()["guided"] == 4
    assert trace.summary()["guided"] == 3 * 1 + 3  # not at pure noise, neither of the samples nor of the clip
    torch.testing.assert_close(beside, results["pulled", True], rtol=1e-2, atol=1e-2)
    assert "step" not in vars(wan.scheduler)


FAMILIES = sorted(TINY)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_pulled_toward_the_sample_that_scored_high(name: str) -> None:
    tiny = TINY[name]()
    pipe = tiny.pipe
    with last_step(pipe) as last:
        plain = tiny.sample()
    finished = last.read().latents
    assert finished.ndim == 5
    settings = Lookahead(samples=2, steps=3, scale=1.0, sharpness=1e4)
    taken = []
    for seed in (1, 2):
        with last_step(pipe) as last:
            tiny.sample(generator=torch.Generator().manual_seed(seed))
        taken.append(last.read().latents)
    looks = Looks(torch.stack(taken, dim=1), torch.tensor([[1.0, -1.0]]))
    with lookahead(pipe, looks=looks, settings=settings) as run, last_step(pipe) as last:
        pulled = tiny.sample()
    moved = last.read().latents - finished
    assert run.trace.summary()["guided"] >= 2
    assert not torch.equal(pulled, plain)
    assert float((moved * (taken[0] - taken[1])).sum()) > 0
    assert torch.equal(tiny.sample(), plain)


def test_bad_input_is_refused_in_a_sentence(wan: Any) -> None:
    with pytest.raises(ValueError, match="Expected somebody who scores the look-ahead samples"), lookahead(wan):
        pass
    for settings, message in (
        ({"samples": 1}, "Expected `samples` to be a whole number of 2 or more"),
        ({"steps": 0}, "Expected `steps` to be a whole number of 1 or more"),
        ({"scale": float("inf")}, "Expected `scale` to be a finite number"),
        ({"stop": 2}, "Expected `stop` to be between 0 and 1"),
        ({"weights": "auto"}, "Expected `weights` to be numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            Lookahead(**settings)
    for judge, message in (
        (lambda clips: torch.full((len(clips),), torch.nan), "Expected a finite score for each sample"),
        (lambda clips: clips.mean(), "Expected the judge to return a score for each of 1 clips"),
    ):
        with pytest.raises(ValueError, match=message), lookahead(wan, judge, STRONG):
            sample(wan)
    with pytest.raises(ValueError, match="Expected 3 seeds for each prompt"):
        sample_looks(wan, "a red circle", STRONG, brightness, seeds=[[1, 2]], **ARGUMENTS)
    looks = sample_looks(wan, "a red circle", STRONG, brightness, **ARGUMENTS)
    with pytest.raises(ValueError, match="Expected a pick for each of the samples"):
        looks.picked([1, 0])
    refused = pytest.raises(ValueError, match="does not look ahead yet")
    with lookahead(wan, brightness, STRONG), refused, lookahead(wan, brightness, STRONG):
        pass
    assert type(wan).__name__ == "WanPipeline"
    assert "step" not in vars(wan.scheduler)


def test_settings_are_written_and_read_back() -> None:
    settings = Lookahead(samples=4, weights="1:0:2", max_push=None)
    assert Lookahead(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.cost(25) == pytest.approx(1 + 4 * 8 / 25)
    assert copy.copy(settings).guidance().scale == settings.scale
