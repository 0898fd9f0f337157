"""The judge's clips are measured as it sees them: decoded, and half of them changed."""

from __future__ import annotations

import random

import pytest
import torch

from nrg_sampler.hosts.pipeline import NRGFlowPipeline
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import sample_prompt, sample_scene
from nrg_sampler.shapes.train.degrade import changed_picture
from nrg_sampler.shapes.train.pool import measured, rendered_pool
from nrg_sampler.shapes.train.train_judge import _decode_pool, _load


def test_a_changed_picture_is_another_one_of_the_same_size():
    rng = random.Random(0)
    clip = render(draw([sample_scene(sample_prompt(rng), rng)]))
    seen = [changed_picture(clip, rng) for _ in range(40)]
    assert all(changed.shape == clip.shape and changed.min() >= 0 and changed.max() <= 1 for changed in seen)
    assert sum(not torch.equal(changed, clip) for changed in seen) >= 35  # nothing may be pale enough to be made grey


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    folder, pipe = tmp_path_factory.mktemp("pools"), NRGFlowPipeline.from_pretrained("shapes")
    list(rendered_pool(pipe, 12, "train", 0, folder / "pool-rendered-train.safetensors"))
    list(_decode_pool(folder, "rendered", "train", pipe, seed=0))
    return folder, pipe


def test_labels_are_of_the_pixels_that_are_stored(decoded):
    pool, pixels = _load(decoded[0], "train", ("rendered",))
    quality, tables = measured(pixels.float() / 255)
    # Stored in 8 bits after they were measured.
    torch.testing.assert_close(pool.quality, quality, atol=0.02, rtol=0)
    torch.testing.assert_close(pool.tables, tables, atol=0.05, rtol=0)


def test_a_pool_is_decoded_once(decoded):
    folder, pipe = decoded
    assert list(_decode_pool(folder, "rendered", "train", pipe, seed=0)) == []
