"""How the bundled models are trained: equivalences and resumption, at tiny sizes."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.origin import is_made, models_in, note_origin
from nrg_sampler.shapes.train.train_base import TrainingAttention, new_transformer, padding_bias


@pytest.mark.parametrize("length", [32, 512])
def test_training_attention_equals_the_stock_model_on_a_padded_prompt(length):
    torch.manual_seed(0)
    transformer = new_transformer().eval().requires_grad_(False)
    mask = torch.arange(24)[None] < torch.tensor([[10], [1]])
    embeds = torch.randn(2, 24, 96) * mask[..., None]
    latents, timestep = torch.randn(2, 16, 3, 4, 4), torch.tensor([300.0, 900.0])
    padded = nn.functional.pad(embeds, (0, 0, 0, length - 24))
    stock = transformer(latents, timestep, padded, return_dict=False)[0]
    attention = TrainingAttention()
    attention.bias = padding_bias(mask, length)
    for block in transformer.blocks:
        block.attn1.set_processor(attention)
        block.attn2.set_processor(attention)
    torch.testing.assert_close(transformer(latents, timestep, embeds, return_dict=False)[0], stock, atol=1e-5, rtol=0)
    attention.bias = padding_bias(mask, 2 * length)
    other = transformer(latents, timestep, embeds, return_dict=False)[0]
    assert (other - stock).abs().max() > 1e-4  # the bias matters, so the test above can fail


def train(folder, stop_after=None, steps=30, spoiled=None, **about):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(step, generator):
        inputs = torch.randn(16, 3, generator=generator)
        error = (model(inputs) - inputs.sum(dim=1, keepdim=True)).pow(2).mean()
        return error * (float("nan") if step == spoiled else 1.0), {}

    run = fit(
        model,
        loss,
        [torch.optim.AdamW(model.parameters(), lr=0.1)],
        LoopSettings(steps, warmup=5, save_every=0.0, about=about),
        folder / "model.pt",
    )
    losses = [numbers["loss"] for numbers in itertools.islice(run, stop_after)]
    run.close()
    return losses, model.weight.detach().clone()


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, weights = train(tmp_path / "whole")
    # The generator is closed at the yield after step 12, before that step was saved: step 12 is done again.
    first, _ = train(tmp_path / "parts", stop_after=12)
    second, resumed = train(tmp_path / "parts")
    assert first[:11] + second == whole
    assert torch.equal(resumed, weights)
    assert whole[-1] < 0.2 * whole[0]


def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path):
    train(tmp_path / "run", batch=16)
    assert train(tmp_path / "run", batch=16)[0] == []
    with pytest.raises(ValueError, match=r"the same as .*model\.pt, but these differ: steps 30 \(now 40\); repeat"):
        train(tmp_path / "run", steps=40, batch=16)
    with pytest.raises(ValueError, match=r"batch 16 \(now 8\)"):
        train(tmp_path / "run", batch=8)
    state = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    del state["identity"]  # as 0.1.0 wrote it
    torch.save(state, tmp_path / "run" / "model.pt")
    assert train(tmp_path / "run", batch=8)[0] == []


def test_a_loss_that_is_not_finite_stops_a_stage(tmp_path):
    with pytest.raises(RunFailedError, match=r"at step 4 it is nan; the last good checkpoint is .*model\.pt"):
        train(tmp_path, spoiled=3)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["step"] == 3


def test_what_was_made_with_another_model_is_noticed(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights").write_bytes(b"first")
    file, origin = tmp_path / "latents.safetensors", models_in(tmp_path, "vae", "absent")
    assert not is_made(file, origin)
    file.touch()
    assert is_made(file, origin)  # as 0.1.0 left it
    note_origin(file, origin)
    assert is_made(file, origin)
    (tmp_path / "vae" / "weights").write_bytes(b"other")
    with pytest.raises(ValueError, match="but the vae there changed since; remove it to make it again"):
        is_made(file, models_in(tmp_path, "vae"))


def test_learning_rate_rises_and_falls_to_zero():
    settings = LoopSettings(100, warmup=10)
    rates = [settings.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)


def test_steps_must_be_positive():
    with pytest.raises(ValueError, match="Expected `steps` to be at least 1, but got 0"):
        LoopSettings(0)
