"""The oracle reads clean clips and falls, step by step, as they get worse."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from nrg_sampler.shapes.oracle import AXES, grade, measure
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import ATTRIBUTES, COLORS, Prompt, prompts, sample_prompt, sample_scene
from nrg_sampler.shapes.train.degrade import blur, freeze, grain, jitter

SEVERITIES = (0.0, 0.25, 0.5, 1.0)


def scenes(count, seed=0):
    rng = random.Random(seed)
    return [sample_scene(sample_prompt(rng, "test"), rng) for _ in range(count)]


def mean_grades(clips, wanted):
    return dict(zip(AXES, grade(clips, wanted).mean(dim=0).tolist(), strict=True))


def falls(values):
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def test_reads_every_attribute_of_clean_renderings():
    chosen = scenes(200)
    batches = [chosen[start : start + 10] for start in range(0, len(chosen), 10)]  # which fit into the cache
    found = [reading for batch in batches for reading in measure(render(draw(batch))).read()]
    for name in ATTRIBUTES:
        right = sum(getattr(a, name) == getattr(scene.prompt, name) for a, scene in zip(found, chosen, strict=True))
        assert right / len(chosen) >= 0.99, name


@pytest.mark.parametrize("fault", [blur, grain])
def test_visual_quality_falls_with(fault):
    chosen = scenes(24)
    clips = render(draw(chosen))
    wanted = [scene.prompt for scene in chosen]
    torch.manual_seed(0)
    values = [mean_grades(fault(clips, s).clamp(0, 1) if s else clips, wanted)["VQ"] for s in SEVERITIES]
    assert falls(values), values


@pytest.mark.parametrize("fault", [jitter, freeze])
def test_motion_quality_falls_with(fault):
    chosen = [scene for scene in scenes(60) if scene.prompt.motion in ("right", "left", "up", "down", "swaying")]
    values = []
    for severity in SEVERITIES:
        torch.manual_seed(0)
        drawing = draw(chosen)
        if severity:
            fault(drawing, severity)
        values.append(mean_grades(render(drawing), [scene.prompt for scene in chosen])["MQ"])
    assert falls(values), values


def test_text_alignment_falls_with_every_wrong_attribute():
    chosen = scenes(24)
    clips = render(draw(chosen))
    wanted = [scene.prompt for scene in chosen]
    right = mean_grades(clips, wanted)["TA"]
    for name, options in ATTRIBUTES.items():
        wrong = [
            Prompt(**{**vars(p), name: options[(options.index(getattr(p, name)) + 1) % len(options)]}) for p in wanted
        ]
        assert mean_grades(clips, wrong)["TA"] < right - 0.1, name


def test_text_alignment_falls_as_the_colour_turns():
    scene = sample_scene(Prompt("circle", "red", "right", "plain"), random.Random(1))
    values = []
    for share in SEVERITIES:
        drawing = draw([scene])
        drawing.color = torch.lerp(drawing.color, torch.tensor(COLORS["yellow"]), share)
        values.append(grade(render(drawing), [scene.prompt])[0, 2].item())
    assert falls(values), values


def test_opposite_direction_is_a_miss():
    scene = sample_scene(Prompt("circle", "red", "right", "plain"), random.Random(2))
    clip = render(draw([scene]))
    assert measure(clip).read()[0].motion == "right"
    assert measure(clip.flip(2)).read()[0].motion == "left"


def test_quality_axes_do_not_read_the_prompt():
    chosen = scenes(4)
    clips = render(draw(chosen))
    one = grade(clips, [scene.prompt for scene in chosen])
    other = grade(clips, prompts("test")[:4])
    assert torch.equal(one[:, :2], other[:, :2])


def test_ties_are_rare():
    chosen = scenes(60, seed=3)
    values = grade(render(draw(chosen)), [scene.prompt for scene in chosen])
    for axis in range(len(AXES)):
        assert len(values[:, axis].unique()) >= 0.95 * len(values)


def test_an_empty_clip_scores_zero():
    assert grade(torch.full((1, 3, 13, 64, 64), 0.5), [Prompt("circle", "red", "right")]).abs().max() == 0


def test_grade_names_what_is_wrong_with_its_input():
    with pytest.raises(ValueError, match="one prompt for each of 1 clips, but got 0"):
        grade(torch.zeros(1, 3, 13, 64, 64), [])
    with pytest.raises(ValueError, match="Expected clips of shape"):
        grade(torch.zeros(1, 13, 3, 64, 64), [Prompt("circle", "red", "right")])
