"""How the bundled models are trained: equivalences and resumption, at tiny sizes."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from nrg_sampler.checkpoints import pipeline_source
from nrg_sampler.runs.progress import RunFailedError
from nrg_sampler.shapes.train import train_base
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.origin import is_made, models_in, note_origin
from nrg_sampler.shapes.train.start import start_transformer
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


def test_a_run_may_be_made_longer_until_its_rate_begins_to_fall(tmp_path):
    def run(folder, steps, stop_after=None):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        loss = lambda step, generator: (model(torch.randn(8, 3, generator=generator)).pow(2).mean(), {})  # noqa: E731
        settings = LoopSettings(steps, warmup=5, hold=0.5, save_every=0.0)
        run = fit(model, loss, [torch.optim.SGD(model.parameters(), lr=0.1)], settings, folder / "model.pt")
        losses = [numbers["loss"] for numbers in itertools.islice(run, stop_after)]
        run.close()
        return losses

    whole = run(tmp_path / "whole", 40)
    first = run(tmp_path / "parts", 20, stop_after=11)  # ten steps saved, the last at the full rate
    assert first[:10] + run(tmp_path / "parts", 40) == whole
    with pytest.raises(ValueError, match=r"these differ: steps 40 \(now 60\)"):
        run(tmp_path / "parts", 60)


def test_the_rate_is_held_before_it_falls():
    settings = LoopSettings(100, warmup=10, hold=0.8)
    assert [settings.rate(step) for step in (4, 9, 10, 79)] == [0.5, 1.0, 1.0, 1.0]
    assert settings.rate(90) == pytest.approx(0.5)
    assert settings.rate(100) == 0
    with pytest.raises(ValueError, match=r"`hold` to be a share in \[0, 1\), but got 1"):
        LoopSettings(100, hold=1)


def test_a_deeper_transformer_begins_as_the_shallower_one(tmp_path, monkeypatch):
    def model(blocks):
        monkeypatch.setattr(train_base, "BLOCKS", blocks)
        torch.manual_seed(blocks)
        return new_transformer().eval().requires_grad_(False)

    earlier, deeper, other = model(2), model(5), model(5)
    earlier.save_pretrained(tmp_path / "transformer")
    start_transformer(deeper, tmp_path)
    inputs = torch.randn(2, 16, 3, 4, 4), torch.tensor([300.0, 900.0]), torch.randn(2, 24, 96)
    expected, got, untouched = (part(*inputs, return_dict=False)[0] for part in (earlier, deeper, other))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert (untouched - expected).abs().max() > 1e-2
    assert all(parameter.abs().sum() > 0 for parameter in deeper.blocks[1].attn1.to_q.parameters())
    with pytest.raises(ValueError, match=r"at most 1 blocks in .* to start from, but it has 2"):
        start_transformer(model(1), tmp_path)
    monkeypatch.setattr(train_base, "HEADS", 2)
    with pytest.raises(ValueError, match="Expected a WanTransformer3DModel of the same layers"):
        start_transformer(model(2), tmp_path)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of bfloat16: slower, not wrong
def test_the_base_stage_goes_on_from_a_pipeline_and_resumes_between_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(train_base, "CHUNK", 3)
    bundled = Path(pipeline_source("shapes"))
    for part in ("vae", "tokenizer", "text_encoder"):
        shutil.copytree(bundled / part, tmp_path / part)
    options = {"steps": 2, "batch": 2, "clips": 5, "start": bundled}
    first = train_base.train_base(tmp_path, **options)
    assert next(first)["encoded"] == 3
    first.close()
    numbers = list(train_base.train_base(tmp_path, **options))
    assert [row["encoded"] for row in numbers if "encoded" in row] == [3, 5]
    latents = torch.cat([load_file(file)["latents"] for file in train_base.latent_files(tmp_path, 5)])
    assert latents.shape == (5, 16, 7, 8, 8) and latents.std() == pytest.approx(1, abs=0.3)
    trained = WanTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert len(trained.blocks) == train_base.BLOCKS
    assert numbers[-1]["loss"] < 1  # a model that knows the world; random weights begin near 2
