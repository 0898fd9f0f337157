"""The arms of the suites, and how others are written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nrg_sampler.evaluation.arms import (
    SUITES,
    UNGUIDED,
    noise_aware_suite,
    rivals_suite,
    wanted_arms,
    weights_suite,
)
from nrg_sampler.guidance.presets import PRESETS
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.lookahead import Lookahead


def test_arms_may_be_given_by_weights_and_settings():
    base = RewardGuidance(weights="1:1:1")
    arms = wanted_arms(
        rivals_suite(base),
        ["guided", "0.2:0.3:0.5", "guided  scale=2 max_push=none", "VQ=1,TA=0.5 floor=TA,MQ balanced=true every=2"],
        base,
    )
    assert [arm.name for arm in arms[:3]] == [UNGUIDED, "guided", "0.2:0.3:0.5"]
    assert arms[3].guidance == replace(base, scale=2, max_push=None)
    assert arms[3].name == "guided scale=2 max_push=none"
    assert arms[4].guidance == RewardGuidance("VQ=1,TA=0.5", floor="TA,MQ", balanced=True, every=2)
    (proposed,) = wanted_arms(weights_suite(base), ["auto"], base)[1:]
    assert proposed.guidance == RewardGuidance("auto")
    assert proposed.weights == "auto"
    (floored,) = wanted_arms(weights_suite(base), ["0.5:0.5:0 floor TA floor=VQ"], base)[1:]
    assert floored.guidance == RewardGuidance("0.5:0.5:0", floor="VQ")
    (trusted,) = wanted_arms(weights_suite(base), ["1:1:1 damping=0.5 fading=VQ=4,MQ=2"], base)[1:]
    assert trusted.guidance == replace(base, damping=0.5, fading={"VQ": 4, "MQ": 2})
    (recommended,) = wanted_arms(weights_suite(base), ["1:1:1 damping=none"], replace(base, damping=2))[1:]
    assert recommended.guidance.damping is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "Expected arms from 'unguided', .*, but got 'best'"),
        ("1:1:1 scales=2", r"settings such as scale=2 \(scale, start, .*, but got '1:1:1 scales=2'"),
        ("unguided scale=2", "a guided one with settings .* but got 'unguided scale=2'"),
        ("1:1:1 scale=high", "Expected a number for `scale`, but got 'high'"),
        ("1:1:1 scale=true", "Expected a number for `scale`, but got 'true'"),
        ("1:1:1 scale=none", "Expected a number for `scale`, but got 'none'"),
        ("1:1:1 balanced=1", "Expected true or false for `balanced`, but got '1'"),
        ("1:1:1 conflicts=ignore", "Expected `conflicts` to be 'sum' or 'project'"),
        ("1:1:1 every=0", "Expected `every` to be a whole number of 1 or more"),
    ],
)
def test_an_arm_that_does_not_parse_is_refused(text, message):
    base = RewardGuidance(weights="1:1:1")
    with pytest.raises(ValueError, match=message):
        wanted_arms(weights_suite(base), [text], base)


def test_look_ahead_arms_take_settings_of_their_own():
    base = RewardGuidance(weights="0:0:1")
    arms = wanted_arms(
        rivals_suite(base), ["look-ahead of 8 scale=2 steps=4", "guided, look-ahead of 8, pixel judge scores"], base
    )[1:]
    assert arms[0].lookahead == Lookahead(weights="0:0:1", scale=2, steps=4)
    assert (arms[0].name, arms[0].guidance, arms[0].candidates) == ("look-ahead of 8 scale=2 steps=4", None, 1)
    assert (arms[1].lookahead, arms[1].guidance) == (Lookahead(), base)
    assert arms[1].guided_by("pixel")
    with pytest.raises(ValueError, match="but got 'look-ahead of 8 damping=1'"):
        wanted_arms(rivals_suite(base), ["look-ahead of 8 damping=1"], base)


def test_flipped_arms_only_change_the_sign():
    arms = {arm.name: arm.guidance for arm in weights_suite(RewardGuidance(scale=2.0))}
    for weights in ("1:0:0", "0:1:0", "0:0:1"):
        assert arms[f"{weights} flipped"].scale == -arms[weights].scale == -2.0
        assert arms[f"{weights} flipped"].weights == arms[weights].weights


def test_the_weights_suite_begins_with_the_arms_it_always_had():
    names = [arm.name for arm in weights_suite(RewardGuidance())]
    singles = ["1:0:0", "0:1:0", "0:0:1"]
    assert names[:8] == [UNGUIDED, "1:1:1", *singles, *(f"{weights} flipped" for weights in singles)]
    assert names[8:] == ["0.1:0.1:0.8", "0.1:0.1:0.6", "0.5:0.5:0", "0.5:0.5:0 floor TA"]


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_an_unguided_arm_and_names_each_arm_once(suite):
    names = [arm.name for arm in SUITES[suite](RewardGuidance(weights="1:1:1"))]
    assert names[0] == UNGUIDED
    assert len(set(names)) == len(names)


def test_rivals_keep_the_user_s_weights():
    arms = {arm.name: arm for arm in rivals_suite(RewardGuidance(weights="0:0:1"))}
    assert {str(arm.guidance.weights) for arm in arms.values() if arm.guidance} == {"0:0:1"}
    assert str(arms["best of 2"].search.weights) == str(arms["resampling"].search.weights) == "0:0:1"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("guided", {}),
        ("guided, first third", {"stop": 1 / 3}),
        ("guided, looking ahead", {"lookahead": 0.1}),
        ("guided every 2nd step", {"every": 2, "reuse": False}),
        ("guided, reused every 2nd", {"every": 2, "reuse": True}),
        ("skip-gradient", {"lookahead": 1.0}),
        ("flipped", {"scale": -1.0}),
        *((f"preset {name}", settings) for name, settings in PRESETS.items()),
    ],
)
def test_variants_differ_from_the_default_in_what_they_are_named_after(name, change):
    base = RewardGuidance.preset("best", weights="0:0:1")
    arms = {arm.name: arm for arm in rivals_suite(base)}
    assert arms[name].guidance == replace(base, **change)
    assert (arms[name].guidance == base) is (name in ("guided", "preset best"))


def test_the_paper_is_met_at_its_own_strength_and_at_one_that_suits_this_reward():
    base = RewardGuidance(weights="0:0:1")
    rivals = {arm.name: arm.guidance for arm in rivals_suite(base)}
    noised = {(arm.name, arm.reward): arm.guidance for arm in noise_aware_suite(base)}
    for name, scale in {"paper": 30.0, "paper to the letter": 100.0}.items():
        assert rivals[name] == RewardGuidance.paper(scale, "0:0:1")
        for trained, reward in {"noised": "target", "clean": "clean"}.items():
            assert noised[f"{trained} latents, {name}", reward] == RewardGuidance.paper(scale, "0:1:0")
