"""The oracle says of changed clips what an eye does, on samples of the bundled model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from nrg_sampler.judges.audit import AuditRow, audit, bundled_judge, unguided_clips
from nrg_sampler.shapes.changes import NO_BETTER, SLIGHT, VISIBLE, blur, compressed, fringed, haloed, noise, ragged
from nrg_sampler.shapes.fit import fit_clean


@pytest.fixture(scope="module")
def samples():
    return unguided_clips(24)


@pytest.fixture(scope="module")
def rows(samples):
    return {row.name: row for row in audit(bundled_judge("oracle"), *samples)}


@pytest.mark.parametrize("name", [*VISIBLE, *SLIGHT, *NO_BETTER])
def test_the_oracle_passes(rows, name):
    assert rows[name].passes, rows[name]


@pytest.mark.parametrize(
    ("fault", "strengths"),
    [
        (blur, (0.7, 1.0, 1.5, 2.0)),
        (compressed, (32, 38, 44)),
        (noise, (0.02, 0.05, 0.1)),
        (ragged, (0.7, 1.5, 3.0)),
        (fringed, (0.1, 0.25, 0.5)),
    ],
)
def test_visual_quality_falls_as_a_fault_grows(samples, fault, strengths):
    clips, wanted = samples[0][:8], samples[1][:8]
    grade = bundled_judge("oracle")
    changed = [clips, *(fault(clips, strength).clamp(0, 1) for strength in strengths)]
    values = [grade(each, wanted)[:, 0].mean().item() for each in changed]
    assert all(worse < better for better, worse in itertools.pairwise(values)), values


def test_a_faint_halo_moves_neither_centre_nor_size(samples):
    clips = samples[0][:12]
    before, after = fit_clean(clips), fit_clean(haloed(clips, 0.12))
    assert (before.center - after.center).norm(dim=-1).median() * 64 < 0.1  # pixels
    assert (before.radius / after.radius).log().abs().median() < 0.02


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        (AuditRow("ragged outlines", (-0.5, 0.0, 0.0), (0.0,) * 3), True),
        (AuditRow("ragged outlines", (-0.4, 0.0, 0.0), (0.0,) * 3), False),
        (AuditRow("ragged outlines", (-0.5, 0.2, 0.0), (0.0,) * 3), False),
        (AuditRow("warmer", (0.0, 0.0, -0.1), (0.0,) * 3), True),
        (AuditRow("warmer", (0.0, 0.0, -0.2), (0.0,) * 3), False),
        (AuditRow("faint halo", (-1.0, 0.0, 0.1), (0.0,) * 3), True),
        (AuditRow("faint halo", (0.2, 0.0, 0.0), (0.0,) * 3), False),
        (AuditRow("faint halo", (0.0, 0.0, math.nan), (0.0,) * 3), False),
        (AuditRow("warmer", (0.0, math.nan, 0.0), (0.0,) * 3), False),
    ],
)
def test_a_row_knows_when_it_fails(row, passes):
    assert row.passes == passes


def test_a_judge_of_paleness_fails(samples):
    clips, wanted = samples[0][:8], samples[1][:8]

    def paleness(clips, wanted):
        value = -(clips.amax(dim=1) - clips.amin(dim=1)).flatten(1).mean(dim=1, keepdim=True)
        return value.expand(-1, 3)

    failing = {row.name for row in audit(paleness, clips, wanted) if not row.passes}
    assert {"pale pixels grey", "ragged outlines", "saturation 0.9"} <= failing


@pytest.mark.parametrize(
    ("count", "sentence"),
    [(0, "but got 0"), (-1, "but got -1"), (10**6, "but got 1000000")],
)
def test_a_number_of_clips_without_prompts_is_refused(count, sentence):
    with pytest.raises(ValueError, match=f"^Expected 1 to [0-9]+ clips, one for each validation prompt, {sentence}"):
        unguided_clips(count)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_clips_that_a_judge_does_not_tell_apart_are_refused(count):
    rows = audit(lambda clips, wanted: torch.zeros(len(clips), 3), torch.rand(count, 3, 5, 64, 64), [])
    with pytest.raises(ValueError, match=rf"its scores of {count} deviate by 0, 0, 0; audit more clips, or others\."):
        next(rows)
    with pytest.raises(ValueError, match=r"Expected clips of shape \(B, 3, T, 64, 64\), but got \(2, 3, 5, 63, 63\)"):
        next(audit(bundled_judge("oracle"), torch.rand(2, 3, 5, 63, 63), []))


def test_odd_sides_are_refused_for_h264():
    with pytest.raises(ValueError, match="^Expected pictures with even sides for H.264, but got 64 x 63; crop them"):
        compressed(torch.rand(1, 3, 5, 64, 63), 30)


def test_changes_keep_the_size_of_a_clip():
    clips = torch.rand(2, 3, 5, 64, 64, generator=torch.Generator().manual_seed(0))
    for name, change in {**VISIBLE, **SLIGHT, **NO_BETTER}.items():
        assert change(clips).shape == clips.shape, name
