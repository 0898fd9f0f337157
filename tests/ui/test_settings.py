"""What a visitor may ask for, whatever the page's sliders allow."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.ui.controls import CONTROLS, GROUPED
from nrg_sampler.ui.jobs import consecutive_seeds, lattice
from nrg_sampler.ui.presets import (
    CUSTOM,
    EXAMPLES,
    GUIDANCE_PRESETS,
    PRESET_SETTINGS,
    PRESETS,
    guidance_preset_of,
    preset_of,
)
from nrg_sampler.ui.settings import OWN_SCHEDULER, Settings

GOOD = {
    "prompt": "a red circle", "weights": "1:0.5:0", "strength": 2.0, "steps": 25, "cfg": 4.0, "seed": 7, "model": "m",
    "start": 0.1, "stop": 0.9, "max_coefficient": None, "max_push": 0.2, "damping": "VQ=0,TA=1.5", "fading": "2",
    "every": 2, "scheduler": "unipc", "floor": "VQ,TA", "conflicts": "project", "parallel": 0.5, "disagreement": 0.5,
    "reuse": True, "smoothing": 0.2, "smoothing_samples": 3,
    "balanced": True, "calibrated": False, "lookahead": 0.5, "forward": "separate",
    "frames": "every:2", "crop": 0.5,
}  # fmt: skip

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "empty prompt": ({"prompt": "  "}, "Expected a prompt, but got an empty text; say what the video shows."),
    "long prompt": ({"prompt": "a" * 501}, "Expected a prompt of at most 500 characters, but got 501; shorten it."),
    "no weight": ({"weights": "0:0:0"}, "Expected at least one reward weight above 0, but got 0:0:0"),
    "words for weights": ({"weights": "a lot"}, "Expected reward weights like '1:1:1'"),
    "a list for weights": ({"weights": [1, 1, 1]}, "Expected weights as text such as '1:1:1', but got [1, 1, 1]."),
    "auto weights": ({"weights": "auto"}, "Expected weights as numbers, but got 'auto'; the page shows"),
    "negative weight": ({"weights": "-1:0:0"}, "Expected reward weights of 0 or more, but got -1"),
    "huge weight": ({"weights": "1e9:0:0"}, "Expected every weight between 0 and 10, but got 1000000000."),
    "negative seed": ({"seed": -1}, "Expected seed between 0 and 4294967295, but got -1."),
    "huge seed": ({"seed": 2**32}, "Expected seed between 0 and 4294967295, but got 4294967296."),
    "half a seed": ({"seed": 0.5}, "Expected a whole number for seed, but got 0.5."),
    "no seed": ({"seed": None}, "Expected a number for seed, but got None."),
    "absurd steps": ({"steps": 100000}, "Expected steps between 1 and 100, but got 100000."),
    "no steps": ({"steps": 0}, "Expected steps between 1 and 100, but got 0."),
    "steps as text": ({"steps": "25"}, "Expected a number for steps, but got '25'."),
    "true steps": ({"steps": True}, "Expected a number for steps, but got True."),
    "endless CFG": ({"cfg": float("inf")}, "Expected a number for CFG, but got inf."),
    "absurd strength": ({"strength": 1e6}, "Expected strength between -1000 and 1000, but got 1000000."),
    "unknown setting": ({"momentum": 1}, "Expected settings from start, stop,"),
    "unknown floor": (
        {"floor": "beauty"},
        "Expected floor from none, TA, VQ, MQ, VQ,TA, MQ,TA, VQ,MQ, but got 'beauty'.",
    ),
    "half a switch": ({"balanced": 1}, "Expected true or false for balance the axes, but got 1."),
    "window": ({"start": 0.9, "stop": 0.1}, "Expected `start` to be at most `stop` (0.1), but got 0.9."),
    "words for a cap": ({"max_push": "a lot"}, "Expected a number for cap, or nothing, but got 'a lot'."),
    "endless cap": ({"max_push": "inf"}, "Expected a number for cap, but got inf."),
    "no push": ({"max_push": 0.0}, "Expected cap between 0.01 and 10, but got 0."),
    "absurd cap": ({"max_push": 50.0}, "Expected cap between 0.01 and 10, but got 50."),
    "absurd damping": (
        {"damping": "little"},
        "Expected `damping` to be 0 or more, or as 'VQ=0,TA=1.5', but got little.",
    ),
    "a list for damping": ({"damping": [1, 2]}, "Expected a short text for damping, but got [1, 2]."),
    "endless damping": ({"damping": "1" * 200}, "Expected a short text for damping, but got '1111"),
    "every half step": ({"every": 1.5}, "Expected a whole number for every n-th step, but got 1.5."),
    "scheduler": ({"scheduler": "ddim"}, "Expected a scheduler from euler, unipc, dpm++, heun, but got 'ddim'."),
}


def test_values_are_read_back_equal() -> None:
    settings = Settings.read(GOOD)
    assert settings.values() == {**GOOD, "fading": "2.0", "max_coefficient": "", "max_push": "0.2"}
    assert Settings.read(settings.values()) == settings
    assert settings.guidance == RewardGuidance(
        weights="1:0.5:0", scale=2, start=0.1, stop=0.9, every=2, max_coefficient=None, max_push=0.2,
        damping="VQ=0,TA=1.5", fading=2, floor="VQ,TA", conflicts="project", parallel=0.5, disagreement=0.5,
        reuse=True, smoothing=0.2, smoothing_samples=3,
        balanced=True, calibrated=False, lookahead=0.5, frames="every:2", crop=0.5,
    )  # fmt: skip


def test_whole_numbers_come_as_floats_from_a_browser() -> None:
    settings = Settings.read({**GOOD, "steps": 25.0, "seed": 7.0, "every": 2.0})
    assert settings == Settings.read(GOOD)
    assert type(settings.steps) is int
    assert type(settings.guidance.every) is int


def test_what_is_left_out_is_the_default() -> None:
    settings = Settings.read({name: GOOD[name] for name in GOOD if name not in (*CONTROLS, "scheduler")})
    assert settings.guidance == RewardGuidance(weights="1:0.5:0", scale=2)
    assert settings.scheduler is None
    assert Settings.read({**GOOD, "scheduler": OWN_SCHEDULER}).scheduler is None


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_values_are_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings.read({**GOOD, **changes})


def test_every_setting_of_the_guidance_has_a_control_that_reads_its_default_back() -> None:
    usual = RewardGuidance()
    of_the_machine = {"offload", "half", "tiny_vae"}  # which is not a visitor's to decide
    assert CONTROLS.keys() == {item.name for item in fields(RewardGuidance)} - {"weights", "scale"} - of_the_machine
    for name, control in CONTROLS.items():
        value = getattr(usual, name)
        assert control.read(control.show(value)) == control.read(value) == value


def test_what_is_not_a_visitors_to_decide_is_refused_unless_it_is_as_usual() -> None:
    usual = {"offload": False, "half": False, "tiny_vae": None}
    assert Settings.read({**GOOD, **usual}) == Settings.read(GOOD)
    for name, value in (("offload", True), ("tiny_vae", "/etc"), ("scale", 1.0)):
        with pytest.raises(ValueError, match=f"but got {name}."):
            Settings.read({**GOOD, name: value})


def test_every_control_is_in_one_group() -> None:
    assert sorted(name for pairs in GROUPED.values() for name, _ in pairs) == sorted(CONTROLS)


def test_presets_have_plain_names_and_weights_that_sample() -> None:
    assert list(PRESETS)[:4] == ["Balanced", "Sharper picture", "Smoother motion", "Follow the prompt"]
    assert sum(name.startswith("Paper") for name in PRESETS) == 4
    for name, weights in PRESETS.items():
        assert PRESETS[preset_of(weights)] == weights, name
        assert Settings.read({**GOOD, "weights": ":".join(f"{weight:g}" for weight in weights)})
    assert preset_of((0.3, 0.2, 0.1)) == CUSTOM


def test_guidance_presets_are_those_of_the_library_by_their_settings() -> None:
    assert [name.split(":")[0] for name in GUIDANCE_PRESETS] == ["Fast", "Balanced", "Best"]
    for name, settings in GUIDANCE_PRESETS.items():
        assert tuple(settings) == PRESET_SETTINGS
        assert guidance_preset_of(settings) == name
        guidance = RewardGuidance.preset(name.split(":")[0].lower())
        assert guidance_preset_of(vars(guidance)) == name
        assert Settings.read({**GOOD, **settings}).guidance.every == guidance.every
    fast, balanced, _ = GUIDANCE_PRESETS
    assert guidance_preset_of(vars(RewardGuidance())) == balanced
    rounded = {**GUIDANCE_PRESETS[fast], "stop": 0.35, "every": 2.0}  # as a slider in steps of 0.05 has it
    assert guidance_preset_of(rounded) == fast
    for change in ({"stop": 0.5}, {"every": 3}, {"reuse": False}, {"start": 0.1}):
        assert guidance_preset_of({**GUIDANCE_PRESETS[fast], **change}) == CUSTOM


def test_examples_are_words_of_the_bundled_model() -> None:
    from nrg_sampler.shapes.scenes import parse, unknown_words

    assert all(parse(text) is not None and not unknown_words(text) for text in EXAMPLES)


def test_the_lattice_is_the_triangle_of_weights_row_by_row() -> None:
    assert lattice(3, 2) == ["1:0:0", "0.5:0.5:0", "0.5:0:0.5", "0:1:0", "0:0.5:0.5", "0:0:1"]
    fine = [[float(weight) for weight in text.split(":")] for text in lattice(3, 4)]
    assert len(fine) == 15
    assert all(sum(point) == 1 for point in fine)
    assert lattice(2, 2) == ["1:0", "0.5:0.5", "0:1"]
    assert lattice(1, 2) == ["0.5", "1"]
    with pytest.raises(ValueError, match=r"Expected a fineness from 2, 4, but got 1000."):
        lattice(3, 1000)


def test_candidates_have_consecutive_seeds() -> None:
    parts = consecutive_seeds(Settings.read(GOOD), 3)
    assert [part.settings.seed for part in parts] == [7, 8, 9]
    with pytest.raises(ValueError, match=r"Expected candidates between 2 and 8, but got 9."):
        consecutive_seeds(Settings.read(GOOD), 9)
    with pytest.raises(ValueError, match=r"Expected seed between 0 and 4294967295, but got 4294967296."):
        consecutive_seeds(Settings.read({**GOOD, "seed": 2**32 - 1}), 2)
