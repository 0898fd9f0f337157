"""A clean rendering is fitted back to itself, and fidelity is 1 where there is no fault."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from skimage.filters import scharr_h, scharr_v

from nrg_sampler.shapes.changes import blur, fringed, noise
from nrg_sampler.shapes.fidelity import STEEPEST, _gradients, _near, fidelity
from nrg_sampler.shapes.fit import fit_clean, steepened
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import HEIGHT, sample_prompt, sample_scene


@pytest.fixture(scope="module")
def drawn():
    rng = random.Random(0)
    drawing = draw([sample_scene(sample_prompt(rng, "test"), rng) for _ in range(20)])
    return drawing, render(drawing)


def test_finds_the_scene_that_was_drawn(drawn):
    drawing, clips = drawn
    fit = fit_clean(clips)
    assert (fit.center - drawing.center).norm(dim=-1).mean() * HEIGHT < 0.06  # pixels
    assert (fit.radius / drawing.radius).log().abs().mean() < 0.01
    assert torch.equal(fit.overlap.argmax(dim=1), drawing.shape)
    assert torch.equal(fit.patterns.argmax(dim=1), drawing.background)
    assert -10 * (fit.rendering - clips).pow(2).mean().log10() > 45  # dB


def test_the_refinement_brings_the_centre_closer(drawn, monkeypatch):
    drawing, clips = drawn
    refined = (fit_clean(clips).center - drawing.center).norm(dim=-1).mean()
    monkeypatch.setattr("nrg_sampler.shapes.fit._refined", lambda mask, shape, center, radius, grid: (center, radius))
    assert refined < 0.8 * (fit_clean(clips).center - drawing.center).norm(dim=-1).mean()


def test_a_tint_that_changes_from_place_to_place_is_no_background(drawn):
    _, clips = drawn
    tinted = clips.clone()
    tinted[:, 2] += 0.1 * torch.linspace(-0.5, 0.5, HEIGHT)[:, None]
    faults = [fidelity(each, fit_clean(each))["backdrop_error"].mean() for each in (clips, tinted.clamp(0, 1))]
    assert faults[0] < 0.001 < faults[1]


def test_a_clean_clip_has_no_fault(drawn):
    _, clips = drawn
    found = fidelity(clips, fit_clean(clips))
    assert found["shape_error"].max() < 0.1
    assert found["backdrop_error"].max() < 1e-3
    assert found["sharpness"].min() > 0.9
    assert found["structure"].min() > 0.98


def test_gradients_are_those_of_a_second_source(drawn):
    _, clips = drawn
    frame = clips[0, :, 3]
    along_x, along_y = _gradients(clips)[0, 0, 3], _gradients(clips)[0, 3, 3]
    grey = frame.mean(dim=0).double().numpy()
    assert np.allclose(along_x, scharr_v(grey)[1:-1, 1:-1] / 2, atol=1e-6)  # it takes differences of two pixels whole
    assert np.allclose(along_y, scharr_h(grey)[1:-1, 1:-1] / 2, atol=1e-6)


def test_structure_and_sharpness_are_a_correlation_and_a_slope(drawn):
    clips = blur(drawn[1][:1], 1.0)
    fit = fit_clean(clips)
    zone = _near(fit)[0, :, 1:-1, 1:-1].bool().expand(6, -1, -1, -1)
    own, clean = (_gradients(each)[0][zone].double().numpy() for each in (clips, fit.rendering))
    found = fidelity(clips, fit)
    cosine = own @ clean / np.sqrt((own @ own) * (clean @ clean))
    assert found["structure"].item() == pytest.approx(cosine, rel=1e-4)
    slope = np.linalg.lstsq(clean[:, None], own, rcond=None)[0].item()
    assert slope - 0.05 < found["sharpness"].item() <= slope  # what is steeper than clean by a quarter does not count


def test_fringes_do_not_sharpen(drawn):
    clips = drawn[1]
    soft, fringed_ = blur(clips, 1.5), fringed(blur(clips, 1.5), 0.5)
    sharpness = [fidelity(each, fit_clean(each))["sharpness"].mean() for each in (soft, fringed_)]
    assert sharpness[1] < sharpness[0]
    assert STEEPEST > 1


def test_noise_below_what_is_noticed_costs_no_backdrop(drawn):
    clips = drawn[1]
    errors = [
        fidelity(each, fit_clean(each))["backdrop_error"].mean()
        for each in (noise(clips, deviation).clamp(0, 1) for deviation in (0.005, 0.05))
    ]
    assert errors[0] < 1e-3 < errors[1]


def test_a_darker_scene_hides_no_fault(drawn):
    clips = blur(drawn[1], 2.0)
    bright, dark = (fidelity(each, fit_clean(each))["shape_error"].mean().item() for each in (clips, 0.7 * clips))
    assert dark == pytest.approx(bright, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 3, 5, 128, 128), (1, 3, 5, 64, 32), (1, 4, 5, 64, 64), (3, 5, 64, 64)])
def test_another_size_than_the_worlds_is_refused(shape):
    with pytest.raises(ValueError, match=r"^Expected clips of shape \(B, 3, T, 64, 64\), but got .*; resample them"):
        fit_clean(torch.zeros(shape))


def test_steepened_keeps_a_half_and_cuts_what_is_faint():
    assert steepened(torch.tensor([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])).tolist() == [0, 0, 0, 0.5, 1, 1]
