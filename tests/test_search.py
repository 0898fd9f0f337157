"""Best-of-n and latent resampling on a tiny Wan pipeline: they return what plain sampling of the same seed does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import PromptMatch, TowardTarget, sample, schedulers

from nrg_sampler import NRGFlowPipeline, RewardGuidance
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.search import Search, _Thinning, best_of_n, search, systematic

# of diffusers' own DPM++ on a recent numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SETTINGS = {
    "height": 16,
    "width": 16,
    "num_frames": 3,
    "num_inference_steps": 4,
    "max_sequence_length": 8,
    "output_type": "latent",
    "reward_scale": 0.0,
}


@pytest.fixture
def pipe(wan):
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TowardTarget())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def closeness(latents: torch.Tensor) -> torch.Tensor:
    return TowardTarget()(latents, torch.zeros(len(latents)), Conditioning())[:, 0]


def test_best_of_n_is_the_best_of_n_single_runs(wan, pipe):
    singles = torch.cat([sample(wan, seed=seed) for seed in range(4)])
    scores = closeness(singles)
    found = best_of_n(pipe, "a red circle", n=4, **SETTINGS)
    assert found.seeds == [int(scores.argmax())]
    torch.testing.assert_close(found.latents, singles[scores.argmax()][None], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.frames, found.latents)
    torch.testing.assert_close(found.scores, scores.max()[None], rtol=1e-4, atol=1e-5)


def test_several_prompts_are_searched_each_on_its_own(wan, pipe):
    prompts, seeds = ["a red circle", "a blue square"], [[5, 6, 7], [0, 1, 2]]
    found = best_of_n(pipe, prompts, n=3, seeds=seeds, **SETTINGS)
    for index, prompt in enumerate(prompts):
        alone = best_of_n(pipe, prompt, n=3, seeds=[seeds[index]], **SETTINGS)
        assert alone.seeds[0] == found.seeds[index]
        torch.testing.assert_close(found.latents[index], alone.latents[0], rtol=1e-4, atol=1e-5)


def test_a_judge_of_pixels_chooses_in_place_of_the_reward(wan):
    pipe = NRGFlowPipeline.from_pipe(wan)
    pipe.set_progress_bar_config(disable=True)
    seen = []

    def darkest(clips, prompts):
        seen.append((tuple(clips.shape), list(prompts)))
        return -clips.mean(dim=(1, 2, 3, 4))

    found = best_of_n(pipe, "a red circle", n=3, judge=darkest, **SETTINGS)
    assert seen == [((3, 3, 3, 16, 16), ["a red circle"] * 3)]
    every = torch.cat([best_of_n(pipe, "a red circle", 1, darkest, [[s]], **SETTINGS).frames for s in range(3)])
    assert found.seeds == [int(every.mean(dim=(1, 2, 3, 4)).argmin())]
    torch.testing.assert_close(found.frames[0], every[found.seeds[0]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["euler", "unipc", "dpm++"])
def test_a_candidate_that_survives_is_sampled_as_if_it_were_alone(wan, solver):
    """So thinning keeps latents, prompts and the memory of multistep solvers together."""
    wan.scheduler = schedulers()[solver]
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=TowardTarget())
    pipe.set_progress_bar_config(disable=True)
    settings = Search(candidates=4, moments=(0.3, 0.6), temperature=0.02)
    prompts, seeds = ["a red circle", "a blue square"], [[3, 4, 5, 6], [7, 8, 9, 10]]
    found = search(pipe, prompts, settings, seeds, **{**SETTINGS, "num_inference_steps": 6})
    for index, prompt in enumerate(prompts):
        assert found.seeds[index] in seeds[index]
        alone = sample(wan, prompt, seed=found.seeds[index], num_inference_steps=6)
        torch.testing.assert_close(found.latents[index : index + 1], alone, rtol=1e-3, atol=1e-4)


def test_a_candidate_that_survives_takes_its_direction_along(pipe):
    """Directions are reused in the steps after a draw, so those of the others must not be taken for its own."""
    arguments = {
        **SETTINGS,
        "num_inference_steps": 6,
        "reward_guidance": RewardGuidance(every=3, reuse=True),
        "reward_scale": 5.0,
    }
    settings = Search(candidates=4, moments=(0.3, 0.6), temperature=0.02)
    found = search(pipe, "a red circle", settings, [[3, 4, 5, 6]], **arguments)
    assert any(step.reused for step in pipe.trace.steps)
    alone = pipe("a red circle", generator=[torch.Generator().manual_seed(found.seeds[0])], **arguments).frames
    torch.testing.assert_close(found.latents, alone, rtol=1e-3, atol=1e-4)


def test_giving_candidates_up_saves_network_evaluations(pipe):
    rows = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    settings = Search(candidates=6, moments=(0.25, 0.5), temperature=1e-4)
    found = search(pipe, "a red circle", settings, **SETTINGS)
    hook.remove()
    # so cold a draw leaves the best one alone: 6 candidates for a quarter of the steps, 1 for the rest
    assert sum(rows) == 2 * 4 * settings.cost()[0] == 2 * (6 + 3)
    assert found.latents.shape[0] == 1


def test_a_cold_draw_keeps_the_best_and_a_hot_one_several(pipe):
    counts = {}
    for temperature in (1e-4, 1e4):
        rows = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs, rows=rows: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
        search(pipe, "a red circle", Search(6, (0.5,), temperature), **SETTINGS)
        hook.remove()
        counts[temperature] = rows[-1]
    assert counts[1e-4] == 1
    assert 2 <= counts[1e4] <= 6


def test_the_same_seeds_give_the_same_search(pipe):
    first = search(pipe, "a red circle", Search(6, (0.3, 0.6), 0.5), **SETTINGS)
    second = search(pipe, "a red circle", Search(6, (0.3, 0.6), 0.5), **SETTINGS)
    assert first.seeds == second.seeds
    assert torch.equal(first.latents, second.latents)


def test_guidance_and_search_compose(pipe):
    arguments = {**SETTINGS, "reward_scale": 5.0}
    guided = best_of_n(pipe, "a red circle", n=3, **arguments)
    unguided = best_of_n(pipe, "a red circle", n=3, **SETTINGS)
    assert closeness(guided.latents) > closeness(unguided.latents)
    resampled = search(pipe, "a red circle", Search(3, (0.5,)), **arguments)
    alone = pipe("a red circle", generator=[torch.Generator().manual_seed(resampled.seeds[0])], **arguments).frames
    torch.testing.assert_close(resampled.latents, alone, rtol=1e-3, atol=1e-4)


def test_the_prompt_s_features_reach_the_reward(wan):
    reward = PromptMatch()
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=reward)
    pipe.set_progress_bar_config(disable=True)
    best_of_n(pipe, ["a red circle", "a blue square"], n=2, **SETTINGS)
    embeds = reward.seen[-1]
    assert torch.equal(embeds[0], embeds[1])
    assert not torch.equal(embeds[1], embeds[2])


def test_the_cost_is_known_beforehand():
    assert Search.best_of(4).cost() == (4.0, 4.0)
    low, high = Search().cost()
    assert low == pytest.approx(6 * 0.2 + 0.8)
    assert high == 6
    assert Search().steps(50) == {10, 15, 20}
    assert Search(moments=(0.01,)).steps(10) == {1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 0}, "Expected `candidates` to be a whole number of 1 or more, but got 0."),
        ({"moments": (0.0,)}, r"Expected `moments` to be between 0 and 1, but got \(0.0,\)."),
        ({"temperature": 0}, "Expected `temperature` to be above 0, but got 0."),
        ({"weights": "0:0:0"}, "Expected at least one reward weight above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(**settings)


def test_a_pipeline_without_reward_or_with_a_hidden_batch_is_refused(wan, pipe):
    with pytest.raises(ValueError, match="Expected a pipeline with a reward to choose by, but `reward_model` is None"):
        best_of_n(NRGFlowPipeline.from_pipe(wan), "a red circle", **SETTINGS)

    class LTXPipeline:
        reward_model = TowardTarget()

    with pytest.raises(ValueError, match=r"Expected a pipeline that can give up candidates .* but got LTXPipeline"):
        search(LTXPipeline(), "a red circle", **SETTINGS)


def test_seeds_that_do_not_fit_are_refused(pipe):
    with pytest.raises(ValueError, match=r"Expected 3 seeds for each of 1 prompts, but got \[2\]"):
        best_of_n(pipe, "a red circle", n=3, seeds=[[0, 1]], **SETTINGS)


def test_particles_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125])
    counts = [
        systematic(weights.log(), torch.Generator().manual_seed(seed)).bincount(minlength=4) for seed in range(400)
    ]
    drawn = torch.stack(counts).float()
    assert ((drawn - 4 * weights).abs() < 1).all()  # rounded down or up, never further away
    torch.testing.assert_close(drawn.mean(dim=0), 4 * weights, atol=0.1, rtol=0)
    assert systematic(torch.zeros(5)).tolist() == [0, 1, 2, 3, 4]


def test_particles_are_drawn_by_what_has_risen_since_the_last_draw(pipe):
    drawing = _Thinning(pipe, Search.particles(4), [0, 1, 2, 3], ["a red circle"])
    scores = torch.tensor([0.0, 30.0, 60.0, 90.0])
    assert drawing._drawn(scores).tolist() == [3, 3, 3, 3]
    drawing.scores = scores  # drawn by once, a lead does not count again
    assert drawing._drawn(scores).tolist() == [0, 1, 2, 3]


def test_particles_part_again_after_a_draw_and_the_best_is_returned(pipe):
    settings = replace(Search.particles(3), temperature=1e-3)
    found = search(pipe, "a red circle", settings, [[0, 1, 2]], **SETTINGS)
    again = search(pipe, "a red circle", settings, [[0, 1, 2]], **SETTINGS)
    assert torch.equal(found.latents, again.latents)
    plain = best_of_n(pipe, "a red circle", n=3, **SETTINGS)
    assert (found.latents - plain.latents).abs().max() > 1e-3
    assert found.scores.isfinite().all()
    torch.testing.assert_close(found.scores, closeness(found.latents), rtol=1e-4, atol=1e-5)


def test_particles_without_draws_and_noise_are_best_of_n(pipe):
    barely = Search(candidates=2, moments=(), noise=1e-6)
    found, plain = search(pipe, "a red circle", barely, **SETTINGS), best_of_n(pipe, "a red circle", n=2, **SETTINGS)
    torch.testing.assert_close(found.latents, plain.latents, rtol=1e-3, atol=1e-3)


def test_the_cost_of_particles_is_that_of_best_of_n():
    assert Search.particles(4).cost() == (4.0, 4.0)
    settings = Search.particles(4, "1:0:1")
    assert Search(**settings.to_dict()) == settings


def test_says_when_a_solver_would_forget_the_fresh_noise(wan, pipe):
    pipe.scheduler = schedulers()["unipc"]
    with pytest.raises(ValueError, match=r"Expected a solver without memory for particles .*got UniPC.*use the Euler"):
        search(pipe, "a red circle", Search.particles(2), **SETTINGS)
    with pytest.raises(ValueError, match=r"Expected `noise` to be between 0 and 1, but got 2."):
        Search(noise=2)
