"""The settings of guidance: what they mean in steps, what is refused, and that they survive JSON."""

from __future__ import annotations

import json

import pytest

from nrg_sampler import RewardGuidance


def test_the_paper_s_settings_have_no_window_limit_or_calibration():
    paper = RewardGuidance.paper()
    assert (paper.scale, paper.start, paper.stop, paper.every, paper.reuse) == (100.0, 0.0, 1.0, 1, False)
    assert (paper.max_coefficient, paper.max_push, paper.calibrated) == (None, None, False)
    assert (paper.damping, paper.fading) == (0.0, 0.0)
    assert (paper.reuse, paper.balanced, paper.conflicts, paper.floor) == (False, False, "sum", None)
    assert (paper.parallel, paper.smoothing, paper.lookahead) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({}, list(range(10))),
        ({"start": 0.3}, [3, 4, 5, 6, 7, 8, 9]),
        ({"stop": 0.3}, [0, 1, 2]),
        ({"start": 0.2, "stop": 0.7}, [2, 3, 4, 5, 6]),
        ({"every": 4, "reuse": False}, [0, 4, 8]),
        ({"every": 4, "reuse": True}, list(range(10))),
        ({"start": 0.5, "stop": 0.5}, []),
    ],
)
def test_the_window_counts_in_fractions_of_the_steps(settings, guided):
    guidance = RewardGuidance(**settings)
    assert [step for step in range(10) if guidance.skips(step, 10) is None] == guided


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 2}, "Expected `start` to be between 0 and 1, but got 2."),
        ({"stop": -0.1}, "Expected `stop` to be between 0 and 1, but got -0.1."),
        ({"start": 0.6, "stop": 0.5}, r"Expected `start` to be at most `stop` \(0.5\), but got 0.6."),
        ({"scale": float("nan")}, "Expected `scale` to be a finite number, but got nan."),
        ({"every": 0}, "Expected `every` to be a whole number of 1 or more, but got 0."),
        ({"every": 1.5}, "Expected `every` to be a whole number of 1 or more, but got 1.5."),
        ({"max_coefficient": 0}, "Expected `max_coefficient` to be above 0, or None for no limit, but got 0."),
        ({"max_push": -1}, "Expected `max_push` to be above 0, or None for no limit, but got -1."),
        ({"conflicts": "fight"}, "Expected `conflicts` to be 'sum' or 'project', but got 'fight'."),
        ({"lookahead": 1.5}, "Expected `lookahead` to be between 0 and 1, but got 1.5."),
        (
            {"lookahead": 1, "smoothing": 0.5},
            "Expected `smoothing` to be 0 with lookahead=1, where no noise is left, but got 0.5.",
        ),
        ({"parallel": 1.5}, "Expected `parallel` to be between 0 and 1, but got 1.5."),
        ({"smoothing": -0.5}, "Expected `smoothing` to be between 0 and 1, but got -0.5."),
        ({"smoothing_samples": 0}, "Expected `smoothing_samples` to be a whole number of 1 or more, but got 0."),
        ({"damping": -1}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got -1."),
        ({"damping": "nan"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got nan."),
        ({"damping": "VQ=-1"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got VQ=-1."),
        ({"damping": "little"}, "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got little."),
        ({"disagreement": -1}, "Expected `disagreement` to be 0 or more, but got -1."),
        ({"weights": "0:0:0"}, "Expected at least one reward weight above 0, but got 0:0:0; use a scale of 0"),
        ({"weights": {"VQ": 0}}, "Expected at least one reward weight above 0, but got VQ=0"),
        ({"weights": "1:x"}, "Expected reward weights like '1:1:1'"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardGuidance(**settings)


def test_zero_weights_are_fine_without_guidance():
    assert RewardGuidance(weights="0:0:0", scale=0).scale == 0


@pytest.mark.parametrize("guidance", [
    RewardGuidance(), RewardGuidance(weights="VQ=1", start=0.2, max_push=None), RewardGuidance(damping=0.5),
    RewardGuidance(damping={"VQ": 0, "TA": 1.5}, fading="2"),
])  # fmt: skip
def test_settings_survive_plain_values(guidance):
    assert RewardGuidance(**json.loads(json.dumps(guidance.to_dict()))) == guidance


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 10),
        ({"scale": 0}, 0),
        ({"every": 4}, 3),
        ({"every": 4, "reuse": True}, 3),
        ({"start": 0.5}, 5),
        ({"smoothing": 0.1}, 40),
    ],
)
def test_the_gradients_of_a_run_are_known_beforehand(settings, count):
    assert RewardGuidance.preset("best", **settings).gradients(10) == count


@pytest.mark.parametrize("floor", ["VQ,TA", ["VQ", "TA"], " VQ, TA "])
def test_a_floor_is_read_from_text_or_a_list(floor):
    guidance = RewardGuidance(floor=floor)
    assert guidance.floor == ("VQ", "TA")
    assert RewardGuidance(**guidance.to_dict()) == guidance
