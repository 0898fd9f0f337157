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


def own_grid(size):
    """Pixel centres of a picture of another size, in picture sides."""
    places = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(places, places, indexing="ij")[::-1], dim=-1)


@pytest.mark.parametrize(("size", "loss"), [(63, 0.03), (128, 0.03), (200, 0.03), (32, 0.2)])
def test_a_scene_drawn_in_another_size_is_graded_the_same(size, loss):
    chosen = scenes(8)
    wanted = [scene.prompt for scene in chosen]
    clips, other = render(draw(chosen)), render(draw(chosen), own_grid(size))
    change = grade(other, wanted) - grade(clips, wanted)
    assert change.mean(dim=0).abs().max() < loss
    assert (change[:, 2].abs() < 0.05).all()
    assert measure(other).read() == measure(clips).read()


def changed(name):
    """Clips that no model makes."""
    chosen = scenes(2)
    drawing = draw(chosen)
    clips = render(drawing)
    if name in ("black", "grey", "white"):
        return torch.full_like(clips, {"black": 0.0, "grey": 0.5, "white": 1.0}[name])
    if name == "red":
        return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1).expand_as(clips)
    if name.endswith("noise"):
        values = torch.rand(clips.shape, generator=torch.Generator().manual_seed(0))
        return values.round() if name == "binary noise" else values
    if name == "leaving":
        drawing.center[..., 0] += torch.linspace(0, 1.5, 13)
    elif name == "as large as the picture":
        drawing.radius, drawing.center = torch.full_like(drawing.radius, 0.55), torch.full_like(drawing.center, 0.5)
    elif name == "tiny":
        drawing.radius *= 0.1
    elif name == "two shapes":
        return torch.where((clips.amax(dim=1) - clips.amin(dim=1) > 0.3)[:, None], clips, clips.flip(4))
    elif name == "every other frame grey":
        clips[:, :, ::2] = 0.5
        return clips
    elif name.endswith("pixels"):
        side = int(name.split()[0])
        return render(drawing, own_grid(side))
    elif name.startswith("none"):
        return clips[:0, ..., :32, :32] if name == "none, small" else clips[:0]
    return render(drawing)


@pytest.mark.parametrize(
    "name",
    [
        *("black", "grey", "white", "red", "noise", "binary noise", "leaving", "as large as the picture", "tiny"),
        *("two shapes", "every other frame grey", "1 pixels", "7 pixels", "none", "none, small"),
    ],
)
def test_any_pixels_have_finite_scores(name):
    clips = changed(name)
    scores = grade(clips, prompts("test")[: len(clips)])
    assert scores.shape == (len(clips), 3)
    assert ((scores >= 0) & (scores <= 1)).all()  # which no NaN is


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_and_strides_of_clips_do_not_matter(dtype):
    chosen = scenes(2)
    clips, wanted = render(draw(chosen)), [scene.prompt for scene in chosen]
    strided = clips.to(dtype).permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.allclose(grade(strided, wanted), grade(clips, wanted), atol=0.01)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda clips: clips.index_fill(2, torch.tensor(3), torch.nan),
            r"those of clip 0 go from nan to nan; scale and",
        ),
        (
            lambda clips: clips.index_fill(0, torch.tensor(1), torch.inf),
            r"those of clip 1 go from inf to inf; scale and",
        ),
        (lambda clips: 2 * clips - 1, r"those of clip 0 go from -0\.\d+ to 0\.\d+; scale and clamp them"),
        (lambda clips: 255 * clips, r"those of clip 0 go from .* to 2\d\d"),
        (lambda clips: (255 * clips).byte(), r"got torch\.uint8; divide pixels of 8 bits by 255"),
        (lambda clips: clips.numpy(), r"got ndarray; divide"),
        (lambda clips: clips[:, :, :3], r"got \(2, 3, 3, 64, 64\); crop them to squares, or sample more frames"),
        (lambda clips: clips[..., :48], r"got \(2, 3, 13, 64, 48\); crop them to squares"),
        (lambda clips: clips[..., :0, :0], r"got \(2, 3, 13, 0, 0\); crop"),
        (lambda clips: clips.to("meta"), r"got a meta tensor; move"),
    ],
)
def test_clips_that_cannot_be_measured_are_refused(spoil, sentence):
    clips = render(draw(scenes(2)))
    with pytest.raises(ValueError, match=f"^Expected .*{sentence}"):
        grade(spoil(clips), prompts("test")[:2])
