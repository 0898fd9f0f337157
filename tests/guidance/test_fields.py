"""A setting is stated once, in its field: whatever is stated there turns up wherever settings are read."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, fields, replace

import pytest

from nrg_sampler.cli.parser import Hidden, ShortHelp, add_guidance, add_help_all
from nrg_sampler.cli.recipe import guidance_from
from nrg_sampler.evaluation.arms import wanted_arms, weights_suite
from nrg_sampler.guidance.fields import GROUPS, Choice, Number, Switch, Text, Whole, setting, settings_of
from nrg_sampler.guidance.presets import ABOUT, DEFAULT, PRESETS
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.ui.controls import controls_of


@dataclass(frozen=True)
class Warmed(RewardGuidance):
    """Guidance with one more setting."""

    warmth: float = setting(0.5, Number(0, 2), "limits", "how warm the colours are", label="Warmth")


def parser_of(kind: type[RewardGuidance]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(formatter_class=ShortHelp)
    add_guidance(parser, kind=kind)
    add_help_all(parser)
    return parser


@pytest.mark.parametrize("words", [["--warmth", "1.5"], ["--set", "warmth=1.5"]])
def test_a_new_field_is_an_option(words: list[str]) -> None:
    arguments = parser_of(Warmed).parse_args(["--scale", "2", *words])
    assert guidance_from(arguments, kind=Warmed) == Warmed(scale=2.0, warmth=1.5)


def test_a_new_field_is_in_the_help_that_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of(Warmed)
    assert "--warmth" not in parser.format_help()
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--help-all"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    assert "how warm the colours are (default: 0.5)" in shown
    assert shown.index("guidance, limits") < shown.rindex("--warmth X") < shown.index("guidance, experimental")


def test_a_new_field_is_a_control_of_the_page() -> None:
    control = controls_of(Warmed)["warmth"]
    assert (control.label, control.info) == ("Warmth", "How warm the colours are.")
    assert control.read(2) == 2.0
    with pytest.raises(ValueError, match=r"Expected warmth between 0 and 2, but got 3."):
        control.read(3)


def test_a_new_field_is_a_setting_of_arms() -> None:
    base = Warmed(weights="1:1:1")
    (arm,) = wanted_arms(weights_suite(base), ["1:1:1 warmth=1.5"], base)[1:]
    assert arm.guidance == replace(base, warmth=1.5)
    with pytest.raises(ValueError, match=r"Expected `warmth` to be between 0 and 2, but got 3."):
        wanted_arms(weights_suite(base), ["1:1:1 warmth=3"], base)


def test_a_new_field_is_checked() -> None:
    with pytest.raises(ValueError, match=r"Expected `warmth` to be between 0 and 2, but got -1."):
        Warmed(warmth=-1)


def test_every_field_states_a_known_group_and_a_default_that_it_accepts() -> None:
    settings = settings_of(RewardGuidance)
    assert settings.keys() == {item.name for item in fields(RewardGuidance)}
    assert {setting.group for setting in settings.values()} == set(GROUPS)
    for name, stated in settings.items():
        assert stated.checked(stated.default) == getattr(RewardGuidance(), name)
        assert not stated.help.endswith(".")
        assert stated.help[0].islower()


def test_experimental_settings_are_hidden_and_called_so() -> None:
    experimental = {name for name, setting in settings_of(RewardGuidance).items() if setting.experimental}
    assert experimental == {"conflicts", "balanced", "parallel", "smoothing", "smoothing_samples", "disagreement"}
    about = RewardGuidance.__doc__ or ""
    options = {action.dest: action for action in parser_of(RewardGuidance)._actions}
    for name in experimental:
        assert f"        {name}: Experimental: " in about
        assert isinstance(options[name].help, Hidden)


READ = [
    (Number(), "1.5", 1.5),
    (Number(), "-2", -2.0),
    (Number(0, above=True, none="no limit"), "None", None),
    (Whole(), "3", 3),
    (Switch(), "True", True),
    (Switch(), "false", False),
    (Choice(("sum", "project")), "sum", "sum"),
    (Text("P", "nothing", lambda name, given: given), "none", None),
    (Text("P", "nothing", lambda name, given: given), "VQ=1", "VQ=1"),
]


@pytest.mark.parametrize(("kind", "text", "value"), READ)
def test_text_is_read_as_the_value_it_says(kind: Number, text: str, value: object) -> None:
    read = kind.checked("x", kind.read("x", text))
    assert read == value
    assert type(read) is type(value)


REFUSED = [
    (Number(), "none", "Expected a number for `x`, but got 'none'."),
    (Number(), "nan", "Expected a number for `x`, but got 'nan'."),
    (Number(0, above=True), "0", "Expected `x` to be above 0, but got 0.0."),
    (Whole(), "1.5", "Expected a whole number for `x`, but got '1.5'."),
    (Whole(2), "1", "Expected `x` to be a whole number of 2 or more, but got 1."),
    (Switch(), "1", "Expected true or false for `x`, but got '1'."),
    (Choice(("a", "b")), "c", "Expected `x` to be 'a' or 'b', but got 'c'."),
]


@pytest.mark.parametrize(("kind", "text", "message"), REFUSED)
def test_text_that_is_no_value_is_refused_in_one_sentence(kind: Number, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        kind.checked("x", kind.read("x", text))


def test_infinity_is_no_limit() -> None:
    assert RewardGuidance(max_push=float("inf")) == RewardGuidance(max_push=None)


@pytest.mark.parametrize("value", ["much", None, [1]])
def test_a_value_of_another_type_is_refused_in_one_sentence(value: object) -> None:
    with pytest.raises(ValueError, match="Expected `crop` to be above 0 and at most 1, but got"):
        RewardGuidance(crop=value)  # type: ignore[arg-type]


def test_presets_say_in_how_many_steps_the_reward_is_evaluated() -> None:
    assert PRESETS.keys() == ABOUT.keys() == {"fast", "balanced", "best"}
    counts = {name: RewardGuidance.preset(name).evaluated_steps(25) for name in PRESETS}
    assert counts == {"fast": 5, "balanced": 13, "best": 25}
    assert RewardGuidance.preset("best", scale=2.0, every=4) == RewardGuidance(scale=2.0, every=4, reuse=False)
    with pytest.raises(ValueError, match="Expected a preset from 'fast', 'balanced', 'best', but got 'cheap'"):
        RewardGuidance.preset("cheap")


def test_the_default_is_the_preset_that_is_called_so() -> None:
    assert RewardGuidance() == RewardGuidance.preset(DEFAULT)


@pytest.mark.parametrize(
    ("words", "guidance"),
    [
        ([], RewardGuidance()),
        (["--preset", "fast"], RewardGuidance.preset("fast")),
        (
            ["--preset", "fast", "--stop", "0.5", "--set", "reuse=false"],
            RewardGuidance(stop=0.5, every=2, reuse=False),
        ),
        (["--no-reuse"], RewardGuidance(reuse=False)),
        (["--every", "1"], RewardGuidance(every=1)),
        (["--max-push", "none", "--set", "weights=VQ=1,TA=0.5"], RewardGuidance("VQ=1,TA=0.5", max_push=None)),
        (["--set", "scale=2", "--set", "scale=3"], RewardGuidance(scale=3.0)),
        (["--paper"], RewardGuidance.paper()),
        (["--paper", "--scale", "30"], RewardGuidance.paper(30.0)),
    ],
)
def test_options_say_what_differs_from_a_preset(words: list[str], guidance: RewardGuidance) -> None:
    assert guidance_from(parser_of(RewardGuidance).parse_args(words)) == guidance


def test_the_suite_s_base_may_be_another_preset() -> None:
    arguments = parser_of(RewardGuidance).parse_args([])
    assert guidance_from(arguments, "best") == RewardGuidance.preset("best")
