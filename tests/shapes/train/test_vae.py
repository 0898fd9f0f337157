"""The autoencoder's stage: its crops, and that it trains, resumes and stores its latents' statistics."""

from __future__ import annotations

import random

import torch
from diffusers import AutoencoderKLWan

from nrg_sampler.shapes.scenes import NUM_FRAMES, split_of
from nrg_sampler.shapes.train.train_vae import CROP, _small_star, crops, train_vae, whole_clips


def test_crops_are_whole_in_time_and_mostly_show_a_shape():
    pixels = crops(3, 24)
    assert pixels.shape == (24, 3, NUM_FRAMES, CROP, CROP)
    assert pixels.min() >= -1 and pixels.max() <= 1
    chroma = (pixels.amax(dim=1) - pixels.amin(dim=1)).flatten(1).amax(dim=1)
    assert (chroma > 0.8).float().mean() > 0.7
    assert torch.equal(pixels, crops(3, 24))


def test_small_stars_are_of_the_training_split():
    rng = random.Random(0)
    drawn = [_small_star(rng) for _ in range(50)]
    assert {(prompt.shape, prompt.size) for prompt in drawn} == {("star", "small")}
    assert {split_of(prompt) for prompt in drawn} == {"train"}


def test_the_stage_trains_resumes_and_stores_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr("nrg_sampler.shapes.train.train_vae.whole_clips", lambda seed, count: whole_clips(seed, 2))
    first = train_vae(tmp_path, steps=3, batch=1)
    next(first)
    first.close()
    steps = [numbers["step"] for numbers in train_vae(tmp_path, steps=3, batch=1)]
    assert steps[-1] == 3
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae")
    assert len(vae.config.latents_mean) == vae.config.z_dim
    assert all(std > 0 for std in vae.config.latents_std)
    assert vae.config.latents_std != [1.0] * vae.config.z_dim
