"""The trainer: resumption, damaged checkpoints, accumulation, masks, and what it learns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_transformer
from tiny_pairs import write_pairs

from nrg_sampler.files import NoRoomError
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.training import trainer
from nrg_sampler.training.cache import LatentCache, clip_name, prompt_name
from nrg_sampler.training.checkpoint import CheckpointWarning, load_checkpoint, newest_checkpoint, save_checkpoint
from nrg_sampler.training.ensemble import bootstrap_weights, level_spread
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.preferences import read_preferences
from nrg_sampler.training.scoring import calibrate
from nrg_sampler.training.trainer import TrainerSettings, draw_indices, train

OBJECTIVE = Objective(num_blocks=1, prompt_dropout=0.2)
SETTINGS = TrainerSettings(steps=6, batch=4, lr=1e-2, trunk_lr=1e-2, warmup=2, save_every=2)


@pytest.fixture
def data(tmp_path):
    """Eight clips of random latents whose first axis follows their mean, with labels on the others at random."""
    file = write_pairs(tmp_path, prompts=[f"prompt {index % 3} {index // 3}" for index in range(8)], clips=8)
    table = read_preferences(file)
    cache = LatentCache(tmp_path / "cache", {})
    generator = torch.Generator().manual_seed(0)
    tensors = {clip_name(tmp_path / f"{i}.mp4"): torch.randn(16, 2, 4, 4, generator=generator) for i in range(8)}
    tensors |= {
        prompt_name(pair.prompt): torch.randn(3 + pair.row % 3, 16, generator=generator) for pair in table.pairs
    }
    cache.add(tensors)
    return PairData.of(table, cache)


def new_reward(objective=OBJECTIVE):
    torch.manual_seed(1)
    return LatentReward.from_transformer(tiny_transformer(), **objective.reward_options())


def run(data, folder, stop_after=None, objective=OBJECTIVE, settings=SETTINGS, accumulate=1, bfloat16=False):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    reward = new_reward(objective)
    steps = train(reward, data, objective, settings, folder, accelerator, bfloat16)
    numbers = list(itertools.islice(steps, stop_after))
    steps.close()
    return [step["loss"] for step in numbers], reward, numbers


def test_a_killed_run_goes_on_to_the_same_loss_and_weights(data, tmp_path):
    whole, expected, _ = run(data, tmp_path / "whole")
    first, _, _ = run(data, tmp_path / "parts", stop_after=3)  # killed after step 3; the last checkpoint is of step 2
    second, resumed, numbers = run(data, tmp_path / "parts")
    assert [step["step"] for step in numbers] == [3, 4, 5, 6]
    assert first[:2] + second == whole
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert len(list((tmp_path / "parts").glob("*.pt"))) == 2


def test_a_truncated_checkpoint_is_noticed_and_the_one_before_used(data, tmp_path):
    whole, expected, _ = run(data, tmp_path / "whole")
    run(data, tmp_path / "parts", stop_after=4)
    newest = tmp_path / "parts" / "checkpoint-4.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(
        CheckpointWarning, match="The checkpoint of step 4 .* is damaged; training goes on from the one"
    ):
        second, resumed, numbers = run(data, tmp_path / "parts")
    assert numbers[0]["step"] == 3
    assert second == whole[2:]
    assert torch.equal(resumed.queries, expected.queries)


def test_a_checkpoint_without_its_checksum_is_not_trusted(tmp_path):
    save_checkpoint(tmp_path, 1, {"step": 1})
    save_checkpoint(tmp_path, 2, {"step": 2})
    (tmp_path / "checkpoint-2.sha256").unlink()
    with pytest.warns(CheckpointWarning):
        assert load_checkpoint(tmp_path) == {"step": 1}
    assert load_checkpoint(tmp_path / "none") is None


def other_labels(data):
    data.preference = -data.preference


def other_clips(data):
    data._clips[0] = data._clips[0][::-1]


def other_encoding(data):
    data._cache.settings["fps"] = 6


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (None, {"objective": Objective(num_blocks=1, loss="thurstone")}, "loss bradley-terry-ties (now thurstone)"),
        (None, {"settings": replace(SETTINGS, lr=1e-3)}, "lr 0.01 (now 0.001)"),
        (None, {"bfloat16": True}, "mixed precision no (now bf16)"),
        (other_labels, {}, "these differ: the labels; repeat"),
        (other_clips, {}, "these differ: the pairs; repeat"),
        (other_encoding, {}, "these differ: fps not set (now 6); repeat"),
    ],
)
def test_refuses_checkpoints_of_another_run_and_names_what_differs(data, tmp_path, change, options, words):
    run(data, tmp_path / "run", stop_after=2)
    if change is not None:
        change(data)
    with pytest.raises(ValueError, match=r"Expected a run that trains the same as the checkpoints in") as refused:
        run(data, tmp_path / "run", **options)
    assert words in str(refused.value)
    assert "name another folder as `out`" in str(refused.value)


def test_save_every_may_change(data, tmp_path):
    whole, _, _ = run(data, tmp_path / "whole")
    run(data, tmp_path / "run", stop_after=2)
    rest, _, _ = run(data, tmp_path / "run", settings=replace(SETTINGS, save_every=5))
    assert rest == whole[2:]


def as_first_release(folder, change=lambda text: text):
    """Rewrite the newest checkpoint as 0.1.0 did, with a text as its identity."""
    state = load_checkpoint(folder)
    fixed = {name: value for name, value in vars(SETTINGS).items() if name != "save_every"}
    text = repr((OBJECTIVE.identity(), fixed, ("VQ", "MQ", "TA"), 8))
    save_checkpoint(folder, state["step"], {**state, "identity": change(text)})


def test_goes_on_from_a_checkpoint_of_the_first_release(data, tmp_path):
    whole, _, _ = run(data, tmp_path / "whole")
    run(data, tmp_path / "run", stop_after=4)
    as_first_release(tmp_path / "run")
    with pytest.warns(CheckpointWarning, match=r"did not write down labels, clips and model; .* another folder"):
        rest, _, _ = run(data, tmp_path / "run")
    assert rest == whole[4:]
    as_first_release(tmp_path / "run", lambda text: text.replace("0.01", "0.02"))
    with pytest.raises(ValueError, match=r"Expected checkpoints of this objective .* but they are of .*0\.02"):
        run(data, tmp_path / "run")


class Divergence:
    """Answers of a step: from some step on, what it measures is not finite."""

    def __init__(self, monkeypatch, first, **numbers):
        self.done, self.first, self.numbers, self.step = 0, first, numbers, trainer._step
        monkeypatch.setattr(trainer, "_step", self)

    def __call__(self, *arguments):
        self.done += 1
        return {**self.step(*arguments), **(self.numbers if self.done >= self.first else {})}


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    Divergence(monkeypatch, 4, loss=float("nan"))
    with pytest.raises(
        RunFailedError, match=r"at step 4 the loss is nan; no reward .* checkpoint is .*checkpoint-2\.pt"
    ):
        run(data, tmp_path / "run")
    assert newest_checkpoint(tmp_path / "run").name == "checkpoint-2.pt"
    Divergence(monkeypatch, 1, loss=float("inf"))
    with pytest.raises(RunFailedError, match=r"at step 1 the loss is inf; .* there is no checkpoint yet"):
        run(data, tmp_path / "new")


def test_gradients_that_are_never_finite_stop_too(data, tmp_path, monkeypatch):
    Divergence(monkeypatch, 1, grad_norm=float("inf"))
    with pytest.raises(RunFailedError, match=r"at step 6 the gradients of the last 6 steps are not finite"):
        run(data, tmp_path / "run")
    run(data, tmp_path / "parts", stop_after=2)
    with pytest.raises(RunFailedError, match=r"at step 6 the gradients of the last 6 steps are not finite"):
        run(data, tmp_path / "parts")
    with pytest.raises(RunFailedError, match=r"at step 10 the gradients of the last 10 steps are not finite"):
        run(data, tmp_path / "long", settings=replace(SETTINGS, steps=20))


def test_a_single_gradient_that_overflows_is_skipped(data, tmp_path, monkeypatch):
    run(data, tmp_path / "run", stop_after=4)
    Divergence(monkeypatch, 1, grad_norm=float("inf"))
    assert len(run(data, tmp_path / "run")[0]) == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/0")]
)
def test_a_full_disk_is_one_error_that_leaves_what_was_there(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, 1, {"step": 1})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(NoRoomError, match=r"Expected room to write .*checkpoint-2\.pt, but"):
        save_checkpoint(tmp_path, 2, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path) == {"step": 1}


@pytest.mark.parametrize("trunk", ["full", "lora", "frozen"])
def test_accumulating_a_batch_in_parts_changes_nothing(data, tmp_path, trunk):
    objective = Objective(num_blocks=1, trunk=trunk, lora_rank=2)
    settings = TrainerSettings(steps=3, batch=4, lr=1e-2, warmup=1)
    whole, expected, _ = run(data, tmp_path / "whole", objective=objective, settings=settings)
    parts, reward, _ = run(data, tmp_path / "parts", objective=objective, settings=settings, accumulate=2)
    assert parts == pytest.approx(whole, abs=1e-5)
    assert set(reward.state_dict()) == set(new_reward().state_dict())
    torch.testing.assert_close(reward.queries, expected.queries, atol=1e-4, rtol=1e-3)


def test_accumulating_a_batch_changes_nothing_for_several_members_either(data, tmp_path):
    objective = Objective(num_blocks=1, num_members=3)
    settings = TrainerSettings(steps=3, batch=4, lr=1e-2, warmup=1)
    whole, expected, _ = run(data, tmp_path / "whole", objective=objective, settings=settings)
    parts, reward, _ = run(data, tmp_path / "parts", objective=objective, settings=settings, accumulate=2)
    assert parts == pytest.approx(whole, abs=1e-5)
    torch.testing.assert_close(
        reward.further_members[1].queries, expected.further_members[1].queries, atol=1e-4, rtol=1e-3
    )


def test_members_learn_from_resamples_of_their_own(data, tmp_path):
    weights = bootstrap_weights(len(data), 3, seed=0)
    assert weights.shape == (8, 3)
    assert (weights == weights.round()).all()
    assert weights.std(dim=1).max() > 0
    assert torch.equal(weights, bootstrap_weights(len(data), 3, seed=0))
    assert not torch.equal(weights, bootstrap_weights(len(data), 3, seed=1))
    assert torch.equal(bootstrap_weights(5, 1, seed=0), torch.ones(5, 1))
    many = bootstrap_weights(20_000, 2, seed=0)
    assert many.mean().item() == pytest.approx(1, abs=0.02)
    assert many.var().item() == pytest.approx(1, abs=0.05)
    settings = TrainerSettings(steps=40, batch=8, lr=1e-2, trunk_lr=1e-3, warmup=5, ema=0.8)
    objective = Objective(num_blocks=1, noised=False, num_members=3)
    _, reward, numbers = run(data, tmp_path / "run", objective=objective, settings=settings)
    assert numbers[-1]["accuracy"] > 0.8
    calibrate(reward, data, torch.device("cpu"), seed=0)
    batch = data.batch(range(8), torch.device("cpu"))
    with torch.no_grad():
        raw = reward(batch.clean[:, 0], torch.zeros(8), batch.conditioning, members=True)
    assert raw.std(dim=1).min() > 0


def test_the_pull_of_levels_leaves_rankings_alone():
    raw = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (grad,) = torch.autograd.grad(level_spread(raw), raw)
    torch.testing.assert_close(grad[:, 0], grad[:, 1])  # both clips of a pair move alike
    torch.testing.assert_close(grad.sum(dim=2), torch.zeros(4, 2, 3))  # and so does the mean of the members
    assert level_spread(raw.detach()[:, :, :1]) == 0


def test_says_how_a_batch_can_be_shared(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"1 processes with 3 accumulated parts each.*got 4 pairs; use a multiple of 3"
    ):
        run(data, tmp_path / "run", accumulate=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"steps": 0}, "Expected `steps` to be at least 1, but got 0"),
        ({"lr": 0.0}, "Expected `lr` to be above 0, but got 0"),
        ({"ema": 1.0}, "Expected `ema` from 0 to below 1, but got 1"),
        ({"warmup": -1}, "Expected `warmup` and `weight_decay` of 0 or more, but got -1"),
    ],
)
def test_settings_are_checked(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        TrainerSettings(**wrong)


def test_every_pair_comes_once_before_any_comes_again():
    settings = TrainerSettings(batch=4)
    drawn = [index for step in range(5) for index in draw_indices(10, settings, step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert len(draw_indices(3, settings, 0)) == 4


def test_axes_that_nobody_labelled_are_not_trained(data, tmp_path):
    data.preference[:, 1] = float("nan")
    settings = TrainerSettings(steps=2, batch=4, lr=1e-2, warmup=0, ema=0.0, weight_decay=0.0)
    before = new_reward()
    _, reward, _ = run(data, tmp_path / "run", settings=settings)
    moved = [not torch.equal(a.weight, b.weight) for a, b in zip(_last(before), _last(reward), strict=True)]
    assert moved[0]
    assert moved[2]
    assert (_last(reward)[1].weight - _last(before)[1].weight).abs().max() < 0.05  # the pull to 0 alone


def _last(reward):
    return [head[-1] for head in reward.heads]


def test_learns_to_rank_and_is_calibrated(data, tmp_path):
    settings = TrainerSettings(steps=60, batch=8, lr=1e-2, trunk_lr=1e-3, warmup=5, ema=0.8)
    objective = Objective(num_blocks=1, noised=False)
    _, reward, numbers = run(data, tmp_path / "run", objective=objective, settings=settings)
    assert numbers[-1]["accuracy"] > 0.9
    assert numbers[-1]["loss"] < 0.7 * numbers[0]["loss"]
    calibrate(reward, data, torch.device("cpu"), seed=0)
    assert all(std > 0 for std in reward.std)
    batch = data.batch(range(8), torch.device("cpu"))
    with torch.no_grad():
        rows = Conditioning(batch.conditioning.prompt_embeds, batch.conditioning.prompt_mask)
        difference = reward(batch.clean[:, 0], torch.zeros(8), rows) - reward(batch.clean[:, 1], torch.zeros(8), rows)
    decided = batch.preference != 0
    assert ((difference.sign() == batch.preference) & decided).sum() > 0.9 * decided.sum()
