"""Scenes, captions and the renderer."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

from nrg_sampler.shapes.render import draw, pixel_grid, render, signed_distance
from nrg_sampler.shapes.scenes import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    Prompt,
    caption,
    parse,
    prompts,
    sample_prompt,
    sample_scene,
    split_of,
    unknown_words,
    vocabulary,
    words_of,
)


def test_world_is_large_enough():
    assert len(SHAPES) >= 5
    assert len(COLORS) >= 8
    assert len(MOTIONS) >= 9
    assert len(BACKGROUNDS) >= 4


def test_every_phrasing_reads_back_as_its_prompt():
    rng = random.Random(0)
    for _ in range(500):
        prompt = sample_prompt(rng)
        assert parse(caption(prompt, rng)) == prompt


def test_captions_have_several_phrasings():
    prompt = Prompt("circle", "red", "right", "plain")
    assert len({caption(prompt, random.Random(seed)) for seed in range(50)}) > 10


@pytest.mark.parametrize("text", ["a red circle", "a red blue circle moving right", "a dog moving right", ""])
def test_parse_leaves_unclear_text_alone(text):
    assert parse(text) is None


def test_unknown_words_are_named_once_and_in_order():
    assert unknown_words("A red unicorn moving right, with a Zebra unicorn.") == ["unicorn", "with", "zebra"]
    assert unknown_words("A red circle, moving right!") == []


def test_vocabulary_covers_every_caption():
    rng, known = random.Random(1), set(vocabulary())
    for _ in range(300):
        assert set(words_of(caption(sample_prompt(rng), rng))) <= known


def test_splits_hold_out_whole_combinations():
    seen = {split: {prompt.combination for prompt in prompts(split)} for split in ("train", "validation", "test")}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    assert sum(len(combinations) for combinations in seen.values()) == len(SHAPES) * len(COLORS) * len(MOTIONS)
    assert len(prompts("test")) >= 400


def test_validation_is_as_broad_as_the_test_split():
    validation, test = ({prompt.combination for prompt in prompts(split)} for split in ("validation", "test"))
    assert len(validation) >= len(test)
    for place, values in enumerate((SHAPES, COLORS, MOTIONS)):
        for combinations in (validation, test):
            assert {combination[place] for combination in combinations} == set(values)


def test_the_test_split_never_changes():
    # Figures of all releases are of these prompts.
    digest = hashlib.sha256("\n".join(caption(prompt) for prompt in prompts("test")).encode()).hexdigest()
    assert digest == "5507ccfd8b630c5b505ba2a0b8ccf83793c1c304c428d3f24cebd1238e321048"


def test_training_prompts_are_never_held_out():
    rng = random.Random(2)
    assert all(split_of(sample_prompt(rng)) == "train" for _ in range(500))


def test_prompts_refuses_an_unknown_split():
    with pytest.raises(ValueError, match="Expected `split` to be train, validation or test, but got 'dev'"):
        prompts("dev")


def test_prompt_refuses_an_unknown_shape():
    with pytest.raises(ValueError, match="Expected `shape` to be one of circle"):
        Prompt("dodecahedron", "red", "right")


def test_shapes_stay_inside_the_picture():
    rng = random.Random(3)
    scenes = [sample_scene(sample_prompt(rng), rng) for _ in range(300)]
    drawing = draw(scenes)
    reach = drawing.radius[..., None]
    assert (drawing.center - reach).min() > 0
    assert (drawing.center + reach).max() < 1


def test_rendering_is_reproducible_and_in_range():
    scenes = [sample_scene(Prompt("star", "cyan", "growing", "striped"), random.Random(4))]
    clip = render(draw(scenes))
    assert clip.shape == (1, 3, 13, 64, 64)
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert torch.equal(clip, render(draw(scenes)))


def test_a_crop_is_a_piece_of_the_whole():
    drawing = draw([sample_scene(Prompt("ring", "pink", "swaying", "checkered"), random.Random(5))])
    torch.testing.assert_close(
        render(drawing, pixel_grid(16, 24, top=20, left=30)), render(drawing)[..., 20:36, 30:54], atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_outlines_have_the_area_that_the_oracle_assumes(shape):
    from nrg_sampler.shapes.fit import AREA

    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1.1, 1.1, 801)] * 2, indexing="xy"), dim=-1)
    inside = (signed_distance(torch.tensor(shape), grid) < 0).float()
    assert inside.mean() * 2.2**2 == pytest.approx(AREA[shape], rel=0.01)


def test_motions_go_where_their_names_say():
    rng = random.Random(6)

    def path(motion):
        drawing = draw([sample_scene(Prompt("circle", "red", motion), rng)])
        return drawing.center[0], drawing.radius[0]

    for motion, axis, sign in (("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)):
        center, _ = path(motion)
        assert (sign * center[:, axis].diff() > 0).all()
        assert center[:, 1 - axis].std() < 1e-6
    assert (path("growing")[1].diff() > 0).all()
    assert (path("shrinking")[1].diff() < 0).all()
    for motion, sign in (("clockwise", 1), ("counterclockwise", -1)):
        steps = path(motion)[0].diff(dim=0)
        turn = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert (sign * turn > 0).all()  # y points down, so clockwise on screen is positive
