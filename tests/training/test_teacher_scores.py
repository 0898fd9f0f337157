"""A reward learned from a teacher instead of labels: which clips, which prompts, what is kept, what is learned."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from nrg_sampler import LatentReward
from nrg_sampler.flow import noised
from nrg_sampler.training.cache import LatentCache
from nrg_sampler.training.losses import LOSSES, Comparison
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.scoring import score_pairs
from nrg_sampler.training.sources import GeneratedClips, MadeClips, plan_samples
from nrg_sampler.training.teacher_scores import PromptPool, ScoredClip, TeacherScores, assign_prompts, mean_and_std
from nrg_sampler.training.trainer import TrainerSettings, train


def test_more_samples_begin_with_those_of_fewer_at_the_same_settings():
    many, few = (plan_samples(["a", "b"], count, 3, (10, 25), (1, 4.0)) for count in (20, 7))
    assert many[:7] == few
    assert [sample.prompt for sample in few] == ["a", "a", "a", "b", "b", "b", "a"]
    assert len({sample.name for sample in many}) == 20
    assert {(sample.steps, sample.guidance_scale) for sample in many} == {(10, 1.0), (10, 4.0), (25, 1.0), (25, 4.0)}
    with pytest.raises(ValueError, match="Expected at least one prompt, step count and guidance scale"):
        plan_samples([], 1, 1, (1,), (1,))


def test_only_samples_with_the_same_settings_are_made_together():
    samples = plan_samples(["a"], 30, 1, (10, 25), (1, 4.0))
    batches = GeneratedClips(None, samples, None, batch=4).batches()
    assert sorted(index for batch in batches for index in batch) == list(range(30))
    assert max(map(len, batches)) == 4
    for batch in batches:
        assert len({(samples[index].steps, samples[index].guidance_scale) for index in batch}) == 1


def test_half_of_the_other_prompts_are_much_like_the_own_one():
    near = [f"a red circle moving {word}" for word in ("left", "up", "down")]
    far = [f"two green {animal} sleep in tree {number}" for animal in ("cats", "owls") for number in range(40)]
    pool, own = PromptPool([*near, *far]), "a red circle moving right"
    drawn = [pool.draw(own, 4, random.Random(seed)) for seed in range(20)]
    assert all(len(set(prompts)) == 4 and own not in prompts for prompts in drawn)
    assert sum(prompt in near for prompts in drawn for prompt in prompts[:2]) > 2
    assert {prompt for prompts in drawn for prompt in prompts[2:]} & set(far)
    assert PromptPool(["a", "b"]).draw("a", 3, random.Random(0)) == ["b"]
    assert pool.draw(own, 0, random.Random(0)) == []


class Numbers:
    """A source whose clips are constant, at their number over ten."""

    bad = ()

    def __init__(self, count):
        self.names = [f"clip/{index}" for index in range(count)]
        self.prompts = [f"prompt {index // 2}" for index in range(count)]
        self.made = []

    def batches(self):
        return [[index, index + 1] for index in range(0, len(self.names), 2)]

    def make(self, indices, latents):
        self.made.append((list(indices), latents is not None))
        clips = torch.stack([torch.full((3, 2, 4, 4), index / 10) for index in indices])
        latents = torch.stack([torch.full((16, 2, 4, 4), float(index)) for index in indices])
        return MadeClips(list(indices), latents, clips)


class Recording:
    axes = ("light", "length")

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __call__(self, clips, prompts, fps):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append((clips[:, 0, 0, 0, 0].tolist(), list(prompts), fps))
        return torch.stack([clips[:, 0, 0, 0, 0], torch.tensor([float(len(prompt)) for prompt in prompts])], dim=1)


ENCODER = SimpleNamespace(prompt=lambda text: torch.ones(2, 16))


def scores_on(tmp_path, teacher, count=6):
    source = Numbers(count)
    scores_of = TeacherScores(teacher, "recording", LatentCache(tmp_path, {}), fps=8.0)
    assigned = assign_prompts(source, [True] * count, others=1)
    return scores_of, source, assigned


def test_an_interruption_costs_a_batch_and_nothing_is_scored_twice(tmp_path):
    scores_of, source, assigned = scores_on(tmp_path, Recording(fails_at=4))
    with pytest.raises(KeyboardInterrupt):
        list(scores_of.fill(source, assigned, ENCODER))
    assert [rows for rows, _ in source.made] == [[0, 1], [2, 3], [4, 5]]
    scores_of, source, assigned = scores_on(tmp_path, teacher := Recording())
    done = list(scores_of.fill(source, assigned, ENCODER))
    assert source.made == [([4, 5], False)]
    assert done[-1] == 3 + 6
    assert sorted(grey for clips, _, _ in teacher.calls for grey in clips) == pytest.approx([0.4, 0.4, 0.5, 0.5])
    assert all(fps == 8.0 for _, _, fps in teacher.calls)

    more = assign_prompts(source, [True] * 6, others=2)  # the clips are known, and most of the answers
    list(scores_of.fill(source, more, ENCODER))
    assert source.made[1:] == [([0, 1], True), ([2, 3], True), ([4, 5], True)]
    assert sum(len(prompts) for _, prompts, _ in teacher.calls[2:]) == 6


def test_pairs_hold_the_teacher_s_scores_under_their_prompt(tmp_path):
    scores_of, source, assigned = scores_on(tmp_path, Recording(), count=8)
    list(scores_of.fill(source, assigned, ENCODER))
    _, scores = scores_of.scores(assigned)
    assert len(scores) == 16
    mean, std = mean_and_std(scores[:, :1])
    mean, std = torch.cat([mean, torch.zeros(1)]), torch.cat([std, torch.ones(1)])
    pairs = scores_of.pairs(assigned, mean, std)
    assert {clip for both in pairs._clips for clip in both} == set(source.names)
    batch = pairs.batch(range(len(pairs)), torch.device("cpu"))
    number = batch.clean[:, :, 0, 0, 0, 0]  # (N, 2): a clip's latents are its number
    torch.testing.assert_close(batch.scores[:, 0], (number / 10 - mean[0]) / std[0])
    difference = batch.scores[:, 0, 0] - batch.scores[:, 0, 1]
    assert torch.equal(batch.preference[:, 0], difference.sign() * (difference.abs() > 0.25))
    own = scores_of.pairs(assigned, mean, std, own=True)
    assert len(own) == 4
    assert all(int(a[-1]) // 2 == int(b[-1]) // 2 for a, b in own._clips)
    with pytest.raises(ValueError, match="Expected clips that the teacher scored, but there are none"):
        scores_of.pairs([ScoredClip("clip/unknown", ("prompt",))], mean, std)


def test_regression_at_a_noise_level_finds_the_expectation_of_the_clean_score():
    r"""For unit-variance latents and a linear teacher E[r(x0) | x] = r(x) (1 - σ) / ((1 - σ)² + σ²)."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(40_000, 2, generator=generator)
    direction = torch.tensor([0.6, -0.8])
    for sigma in (0.2, 0.5, 0.9):
        level = torch.full((len(clean),), sigma)
        noisy = noised(clean, torch.randn(clean.shape, generator=generator), level)
        weight = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=20)

        def closure(optimizer=optimizer, noisy=noisy, weight=weight, level=level):
            optimizer.zero_grad()
            raw, scores = (noisy @ weight)[:, None], (clean @ direction)[:, None]
            half = len(raw) // 2
            comparison = Comparison(
                raw[:half], raw[half:], torch.zeros(half, 1), level[:half], scores[:half], scores[half:]
            )
            loss = LOSSES["regression"](comparison).per_axis().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        exact = direction * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
        torch.testing.assert_close(weight.detach(), exact, atol=0.02, rtol=0)


class Grey:
    """Clips of one grey each, whose latents show it under noise of their own."""

    bad = ()

    def __init__(self, numbers):
        self.names = [f"clip/{number}" for number in numbers]
        self.prompts = [f"prompt {number % 5}" for number in numbers]
        self._numbers = list(numbers)

    def batches(self):
        return [list(range(len(self.names)))]

    def make(self, indices, latents):
        generators = [torch.Generator().manual_seed(self._numbers[index]) for index in indices]
        grey = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(16, 2, 4, 4, generator=generator) for generator in generators])
        grey = grey.view(-1, 1, 1, 1, 1)
        return MadeClips(list(indices), noise + 2 * (grey - 0.5), grey.expand(-1, 3, 2, 4, 4))


def test_tells_held_out_clips_apart_and_knows_less_where_there_is_more_noise(tmp_path):
    """Ranked right, and regressed to the mean: the spread of E[r | x] falls with the noise, by the law of variance."""
    from accelerate import Accelerator
    from tiny import tiny_transformer

    torch.manual_seed(0)
    scores_of = TeacherScores(Recording(), "recording", LatentCache(tmp_path, {}), fps=8.0)
    trained, tested = Grey(range(96)), Grey(range(1000, 1064))
    assigned = [assign_prompts(source, [True] * len(source.names), others=1) for source in (trained, tested)]
    for source, clips in zip((trained, tested), assigned, strict=True):
        list(scores_of.fill(source, clips, ENCODER))
    mean, std = scores_of.scores(assigned[0])[1].mean(dim=0), torch.tensor([0.29, 1.0])
    training, held_out = (scores_of.pairs(clips, mean, std) for clips in assigned)
    objective = Objective(loss="regression", num_blocks=1)
    reward = LatentReward.from_transformer(
        tiny_transformer(), **objective.reward_options(), axes=("light", "length"), text_axes=("length",)
    )
    settings = TrainerSettings(steps=80, batch=16, lr=1e-2, trunk_lr=2e-3, warmup=10, ema=0.9)
    list(train(reward, training, objective, settings, tmp_path / "run", Accelerator(cpu=True)))
    batch = held_out.batch(range(len(held_out)), torch.device("cpu"))
    noise = torch.randn(batch.clean.shape)  # one of its own for each clip, which hides what sets it apart
    right, spreads = [], []
    for sigma in (0.1, 0.95):
        with torch.no_grad():
            level = torch.full((len(held_out),), sigma)
            scores = score_pairs(reward, batch.clean, noise, level, batch.conditioning)[..., 0]
        decided = batch.preference[:, 0] != 0
        right.append(((scores[:, 0] - scores[:, 1]).sign() == batch.preference[:, 0])[decided].float().mean().item())
        spreads.append(scores.std().item())
    assert right[0] > 0.9
    assert right[0] > right[1] + 0.05
    assert spreads[0] > 1.3 * spreads[1]
