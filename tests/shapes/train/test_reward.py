"""What the training stages of the bundled reward compare: neighbouring clips, several prompts a group, attributes."""

from __future__ import annotations

import random

import pytest
import torch

from nrg_sampler.shapes.train import rating
from nrg_sampler.shapes.train import train_reward as training
from nrg_sampler.shapes.train.groups import COMBINATION, PairSampler, to_prompt
from nrg_sampler.shapes.train.pool import GROUP, Pool
from nrg_sampler.shapes.train.train_text import CHOICES


def every_combination(copies=2):
    """A pool of one clip for each shape, colour and motion, each twice, without latents worth looking at."""
    sizes = [len(values) for values in CHOICES.values()]
    labels = torch.cartesian_prod(*(torch.arange(size) for size in sizes[:COMBINATION]))
    labels = torch.cat([labels, torch.zeros(len(labels), 2, dtype=torch.long)], dim=1).repeat(copies, 1)
    generator = torch.Generator().manual_seed(0)
    count = len(labels)
    latents = torch.randn(count, 16, 1, 4, 4, generator=generator).half()
    tables = torch.rand(count, sum(sizes), generator=generator)
    return Pool(latents, labels, torch.arange(count), torch.rand(count, 3, generator=generator), tables)


def test_the_curriculum_is_in_an_order_that_can_be_run():
    from nrg_sampler.shapes.train.__main__ import REWARDS

    assert tuple(training.CURRICULUM) == REWARDS
    for place, stage in enumerate(training.CURRICULUM.values()):
        needed = [training.GUIDED_BY[kind] for kind in stage.pools if kind in training.GUIDED_BY]
        assert {stage.start, *needed} - {None} <= set(REWARDS[:place])


def test_neighbours_differ_in_one_attribute_alone_and_each_attribute_gets_its_turn():
    pool = every_combination()
    sampler, rng = PairSampler(pool), random.Random(0)
    turns = []
    for _ in range(600):
        rows = sampler.draw("near", rng)
        shown = pool.labels[rows, :COMBINATION]
        assert (shown[1] == shown[0]).all()
        assert len(rows) == GROUP
        differs = shown[2:] != shown[0]
        assert (differs.sum(dim=1) == 1).all()
        assert (differs[0] == differs[1]).all()
        turns.append(int(differs[0].int().argmax()))
    shares = torch.bincount(torch.tensor(turns), minlength=COMBINATION) / len(turns)
    assert (shares - 1 / COMBINATION).abs().max() < 0.07


def test_further_prompts_begin_with_the_own_one_and_stay_in_the_training_split():
    pool = every_combination()
    sampler, rng = PairSampler(pool), random.Random(0)
    rows, labels = sampler.draw_groups(["mixed"] * 40, rng)
    wanted = sampler.further_prompts(rows, labels, 4, rng)
    assert wanted.shape == (40, 4, 5)
    assert torch.equal(wanted[:, 0], labels)
    changed = (wanted[:, 1:] != labels[:, None]).any(dim=-1).float().mean()
    assert changed > 0.8
    assert torch.equal(sampler.further_prompts(rows, labels, 1, rng), labels[:, None])


class Recorder:
    """Stands in for a reward: its inputs come back as its output."""

    queries = torch.zeros(1, 3, 8)

    def features(self, latents, sigma, conditioning):
        return latents.flatten(1)[:, None]  # (B, 1, C * T * H * W)

    def score_features(self, hidden, conditioning, members):
        first = conditioning.prompt_embeds.sum(dim=(1, 2))
        return torch.stack([first, hidden[:, 0, 0], hidden[:, 0, 1]], dim=1)[:, None]  # (B, 1, 3)


def test_each_clip_is_rated_under_each_prompt_of_its_group(monkeypatch):
    pool = every_combination()
    monkeypatch.setattr(rating, "encode_text", lambda tokenizer, encoder, texts: encoded(texts))
    rows = torch.arange(2 * GROUP).view(2, GROUP)
    labels = pool.labels[:6].view(2, 3, 5)

    class Pipe:
        tokenizer = text_encoder = None

    raw, features = rating.rate_groups(
        Recorder(), pool, rows, labels, Pipe, random.Random(0), torch.Generator().manual_seed(3), (0.5, 0.5)
    )
    assert raw.shape == (2, 3, GROUP, 1, 3)
    texts = [label for group in labels for label in group]
    expected = torch.tensor([value_of(to_prompt(row.tolist())) for row in texts]).view(2, 3, 1)
    torch.testing.assert_close(raw[..., 0, 0], expected.expand(-1, -1, GROUP))
    # One noise and one level a group, the same latents under every prompt.
    clean = pool.latents[rows.flatten()].float().unflatten(0, (2, GROUP))
    noisy = features.view(2, GROUP, *clean.shape[2:])
    noise = noisy - 0.5 * clean
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), atol=1e-5, rtol=0)
    assert (noise[0, 0] - noise[1, 0]).abs().max() > 0.1
    torch.testing.assert_close(raw[:, :, :, 0, 1:], features.view(2, 1, GROUP, -1)[..., :2].expand(-1, 3, -1, -1))


def encoded(texts):
    """An embedding that tells prompts apart whatever their wording."""
    from nrg_sampler.shapes.scenes import parse

    values = torch.tensor([value_of(parse(text)) for text in texts])
    return values[:, None, None], torch.ones(len(texts), 1, dtype=torch.bool)


def value_of(prompt):
    return float(sum(ord(letter) for letter in prompt.shape + prompt.color + prompt.motion))


def test_the_last_stage_pairs_prompts_with_their_scores_and_names_what_is_shown(monkeypatch, tmp_path):
    from nrg_sampler.checkpoints import bundled_folder

    for part in ("vae", "text_encoder", "tokenizer", "transformer"):
        (tmp_path / part).symlink_to(bundled_folder("pipeline") / part)
    pool = every_combination()
    pool.group = torch.arange(len(pool.group)) // GROUP  # samples of one prompt come in groups
    kept = []

    def fit(trained, loss, *rest):
        kept.extend((trained, loss))
        yield {"step": 1}

    def knows(reward, pool, rows, labels, *rest):
        sampler = PairSampler(pool)
        rated = rows.repeat_interleave(labels.shape[1], dim=0)
        ratings = training.SLOPE * sampler.ratings(rated, labels.flatten(0, 1))
        return ratings.unflatten(0, labels.shape[:2])[..., None, :], torch.zeros(rows.numel(), 2, 192)

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(training, "prepare_pools", lambda *given: iter(()))
    monkeypatch.setattr(training.Pool, "load", lambda *files: pool)
    start = untrained()
    monkeypatch.setattr(training.LatentReward, "from_pretrained", lambda path: start)
    monkeypatch.setattr(training, "rate_groups", knows)
    monkeypatch.setattr(training, "ANNOTATOR_NOISE", 0.0)
    (tmp_path / "robust-reward").mkdir()
    run = training.train_reward(tmp_path, steps=1, batch=16)
    next(run)
    run.close()
    trained, loss = kept
    assert set(trained.keys()) == {"reward", "reader"}
    right, numbers = loss(0, torch.Generator().manual_seed(0))
    assert {"VQ", "MQ", "TA", "shape", "color", "motion", "background", "size"} == set(numbers)
    monkeypatch.setattr(training, "rate_groups", lambda *given: tuple(part.flip(1) for part in knows(*given)))
    confused, _ = loss(0, torch.Generator().manual_seed(0))
    assert confused > right + 0.2
    with torch.no_grad():
        trained["reader"].heads[0].bias.fill_(0.0)
        even, _ = loss(0, torch.Generator().manual_seed(0))
        trained["reader"].heads[0].bias.copy_(torch.tensor([9.0, -9, -9, -9, -9]))
        certain, _ = loss(0, torch.Generator().manual_seed(0))
    assert certain > even + 1  # most clips show another shape than the first
    with pytest.raises(KeyError):
        next(training.train_reward(tmp_path, "no-reward"))


@pytest.mark.parametrize(("sign", "accuracy"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_accuracy_is_the_share_of_pairs_that_are_ranked_as_the_oracle_ranks_them(monkeypatch, sign, accuracy):
    pool = every_combination()

    def knows(reward, pool, rows, labels, *rest):
        ratings = PairSampler(pool).ratings(rows, labels[:, 0])
        return sign * ratings[:, None, :, None], None

    monkeypatch.setattr(rating, "rate_groups", knows)
    table = rating.accuracy_by_sigma(None, pool, None, 0, "mixed", groups=20)
    assert list(table) == ["0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0"]
    assert all(
        found["accuracy"] == accuracy and found["pairs"] > 0 for row in table.values() for found in row.values()
    )


def untrained():
    from diffusers import WanTransformer3DModel

    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.rewards.latent import LatentReward

    torch.manual_seed(0)
    transformer = WanTransformer3DModel.from_pretrained(bundled_folder("pipeline") / "transformer")
    return LatentReward.from_transformer(transformer, 2, text_axes=("TA",), num_token_reads=1)
