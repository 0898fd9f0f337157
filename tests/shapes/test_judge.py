"""The pixel judge: what it sees, what it refuses, and that its training resumes."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from nrg_sampler.rewards.base import check_reward
from nrg_sampler.shapes.judge import PixelJudge, temporal_shift
from nrg_sampler.shapes.scenes import vocabulary

TEXTS = ["a red circle moving right", "a blue ring falling over stripes"]


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return PixelJudge(words=vocabulary(), widths=(8, 16), dim=16, num_heads=2, depth=1).requires_grad_(False).eval()


@pytest.fixture
def clips():
    return torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))


def test_full_size_stays_small():
    assert sum(value.numel() for value in PixelJudge(words=vocabulary()).parameters()) <= 3e6


def test_shift_moves_channels_one_frame_and_keeps_the_rest():
    features = torch.arange(2 * 3 * 8.0).reshape(1, 6, 8, 1, 1)
    shifted = temporal_shift(features, share=0.25)
    assert torch.equal(shifted[:, 1:, :2], features[:, :-1, :2])
    assert not shifted[:, 0, :2].any()
    assert torch.equal(shifted[:, :-1, 2:4], features[:, 1:, 2:4])
    assert not shifted[:, -1, 2:4].any()
    assert torch.equal(shifted[:, :, 4:], features[:, :, 4:])


def test_grades_each_clip_on_its_own(judge, clips):
    both = judge(clips, TEXTS)
    assert both.shape == (2, 3)
    assert both.dtype == torch.float32
    alone = torch.cat([judge(clips[i : i + 1], TEXTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)


def test_only_text_axes_see_the_prompt(judge, clips):
    before, after = judge(clips, TEXTS), judge(clips, TEXTS[::-1])
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().min() > 1e-6


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_sees_the_order_of_frames_and_where_things_are(judge, clips, dim):
    assert (judge(clips, TEXTS) - judge(clips.flip(dim), TEXTS)).abs().amax(dim=0).min() > 1e-6


def test_takes_other_lengths_and_sizes(judge):
    assert judge(torch.rand(1, 3, 9, 48, 40), TEXTS[:1]).isfinite().all()


def test_round_trip(judge, clips, tmp_path):
    judge.register_to_config(mean=[1.0, 2.0, 3.0], std=[0.5, 1.0, 2.0])
    judge.save_pretrained(tmp_path)
    loaded = PixelJudge.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(clips, TEXTS), judge(clips, TEXTS))
    assert loaded.axes == ("VQ", "MQ", "TA")
    assert loaded.mean == (1.0, 2.0, 3.0)
    assert loaded.std == (0.5, 1.0, 2.0)


def test_says_what_is_wrong(judge, clips, wan):
    with pytest.raises(ValueError, match=r"Expected clips of shape \(B, 3, T, H, W\), but got \(2, 5, 3"):
        judge(clips.transpose(1, 2), TEXTS)
    with pytest.raises(ValueError, match="Expected one prompt for each of 2 clips, but got 1 prompts"):
        judge(clips, TEXTS[:1])
    with pytest.raises(ValueError, match="Expected words that the judge was trained on, but got 'zebra'; write"):
        judge(clips, ["a red zebra", "a red circle"])
    with pytest.raises(ValueError, match="Expected a reward on noisy latents to guide with, but got a judge"):
        check_reward(judge, wan)
    with pytest.raises(ValueError, match="Expected `text_axes` to be some of VQ, but got TA"):
        PixelJudge(axes=("VQ",), words=("a",))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMS norm under autocast
def test_trains_from_the_stages_resumes_and_reports(tmp_path, monkeypatch):
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.shapes.train import train_judge as stage
    from nrg_sampler.shapes.train.pool import Pool
    from nrg_sampler.shapes.train.train_text import attribute_labels

    for part in ("vae", "text_encoder", "tokenizer", "transformer"):
        (tmp_path / part).symlink_to(bundled_folder("pipeline") / part)
    (tmp_path / "reward").symlink_to(bundled_folder("reward"))
    wanted: list[int] = []

    def few_clips(folder, pipe, seed, counts, reward, held_out):
        """Stand in for rendering and sampling: random latents."""
        wanted.append(seed)
        for kind, split in itertools.product(counts, ("train", "validation")):
            rng = random.Random(f"{kind}/{split}")
            prompts = [stage.to_prompt([rng.randrange(n) for n in (5, 8, 9, 4, 2)]) for _ in range(12)]
            labels = attribute_labels(prompts).repeat_interleave(4, dim=0)
            latents = torch.randn(48, 16, 3, 8, 8, generator=torch.Generator().manual_seed(rng.randrange(99)))
            quality, tables = torch.rand(48, 3), torch.rand(48, 28)
            group = torch.arange(12).repeat_interleave(4)
            Pool(latents.half(), labels, group, quality, tables).save(folder / f"pool-{kind}-{split}.safetensors")
        yield {"step": 0}

    monkeypatch.setattr(stage, "prepare_pools", few_clips)
    monkeypatch.setattr(stage, "KINDS", ("mixed",))
    monkeypatch.setattr(stage, "HELD_OUT_GROUPS", 8)
    monkeypatch.setattr(stage, "CALIBRATION_GROUPS", 2)
    monkeypatch.setattr(stage, "MIXTURE", {"mixed": 1.0})
    small = {"widths": (8, 16), "dim": 16, "num_heads": 2, "depth": 1}
    monkeypatch.setattr(stage, "PixelJudge", lambda **options: PixelJudge(**options, **small))
    run = stage.train_judge(tmp_path, steps=3, batch=8)
    assert next(numbers for numbers in run if numbers["step"] == 1)["loss"] > 0
    run.close()
    (tmp_path / "judge-pools" / "pixels-faultless-train.safetensors").stat()
    assert_pairs_prompts_with_their_grades(stage, tmp_path, monkeypatch)
    steps = [numbers["step"] for numbers in stage.train_judge(tmp_path, steps=3, batch=8)]
    assert steps == [0, 1, 2, 3]  # the pixels were decoded once: only the stand-in reports step 0 again
    assert set(wanted) == {stage.OTHER_SEED}
    report = json.loads((tmp_path / "judge-accuracy.json").read_text())
    assert set(report["mixed"]["TA"]) == {"accuracy", "pairs", "agreement"}
    assert set(report["reading"]) == {"shape", "color", "motion", "background", "size"}
    assert all(0 <= found["accuracy"] <= 1 and found["pairs"] == 48 for found in report["reading"].values())
    assert len(PixelJudge.from_pretrained(tmp_path / "judge").std) == 3


def assert_pairs_prompts_with_their_grades(stage, folder, monkeypatch):
    """A judge that knows the oracle's scores under every prompt has no loss to reduce, one that confuses them has."""
    from nrg_sampler.training.losses import Comparison

    def knows(judge, pixels, rows, labels, rng):
        sampler = stage.PairSampler(stage._load(folder / "judge-pools", "train", stage.POOLS)[0])
        wanted = labels.flatten(0, 1)
        ratings = sampler.ratings(rows.repeat_interleave(labels.shape[1], dim=0), wanted)
        return 8 * ratings.unflatten(0, labels.shape[:2]), torch.zeros(rows.numel(), 2, 16)

    kept = []

    def fit(model, loss, *rest):
        kept.append(loss)
        yield {"step": 1}

    compared = []

    def comparison(first, second, label):
        compared.append((first - second, label))
        return Comparison(first, second, label)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "fit", fit)
        patch.setattr(stage, "Comparison", comparison)
        patch.setattr(stage, "grade_groups", knows)
        patch.setattr(stage, "ANNOTATOR_NOISE", 0.0)
        run = stage.train_judge(folder, steps=1, batch=8)
        assert any(numbers["step"] == 1 for numbers in run)
        run.close()
        (loss,) = kept
        _, numbers = loss(0, torch.Generator().manual_seed(0))
        clips, prompts = compared  # clips under one prompt on every axis, and one clip under two prompts on TA alone
        assert clips[1].shape[-1] == 3
        assert prompts[1].shape[-1] == 1
        assert all((label != 0).any() and (label * margin >= 0).all() for margin, label in compared)
        patch.setattr(
            stage, "grade_groups", lambda *given: tuple(part.flip(min(1, part.ndim - 3)) for part in knows(*given))
        )
        _, confused = loss(0, torch.Generator().manual_seed(0))
    assert numbers["preferred"] < 0.7 * confused["preferred"]


def test_reading_is_to_prefer_the_own_prompt_over_one_that_differs_in_one_attribute():
    from nrg_sampler.shapes.scenes import parse
    from nrg_sampler.shapes.train.groups import to_prompt
    from nrg_sampler.shapes.train.pool import Pool
    from nrg_sampler.shapes.train.train_judge import reading_accuracy
    from nrg_sampler.shapes.train.train_text import CHOICES, attribute_labels

    rng = random.Random(0)
    prompts = [to_prompt([rng.randrange(n) for n in (5, 8, 9, 4, 2)]) for _ in range(40)]
    nothing = torch.zeros(40, 1)
    pool = Pool(nothing, attribute_labels(prompts), torch.arange(40), nothing, nothing)
    pixels = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1, 1)  # each says which clip it is

    class Reader:
        """Knows every attribute but one, and that one the wrong way round."""

        device = "cpu"

        def __init__(self, misread):
            self.misread = misread

        def __call__(self, clips, texts):
            grades = torch.zeros(len(texts), 3)
            for row, (clip, text) in enumerate(zip(clips, texts, strict=True)):
                shown, wanted = prompts[round(clip.item() * 255)], parse(text)
                differing = [name for name in CHOICES if getattr(shown, name) != getattr(wanted, name)]
                assert len(differing) <= 1
                grades[row, 2] = sum(1 if name == self.misread else -1 for name in differing)
            return grades

    found = reading_accuracy(Reader("shape"), pool, pixels, 0)
    assert {name: row["accuracy"] for name, row in found.items()} == {**dict.fromkeys(CHOICES, 1.0), "shape": 0.0}
    assert {row["pairs"] for row in found.values()} == {40}


def test_names_what_is_shown():
    from nrg_sampler.shapes.train.attributes import AttributeClassifier

    reader = AttributeClassifier(4)
    with torch.no_grad():
        for head in reader.heads:
            head.weight.zero_()
            head.bias.copy_(torch.arange(len(head.bias)).float())
    sizes = [len(head.bias) for head in reader.heads]
    last = torch.tensor([[size - 1 for size in sizes], [0] * len(sizes)])
    loss, right = reader(torch.randn(2, 3, 4), last)
    assert set(right.values()) == {0.5}
    expected = sum(-(torch.arange(size).float().log_softmax(0)[[size - 1, 0]]).mean() for size in sizes)
    torch.testing.assert_close(loss, expected)
