"""Whatever is written where the command line wants a number or a setting: it is taken, or one line says why not."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_fuzz import almost_weights

from nrg_sampler import cli
from nrg_sampler.cli.parser import number, positive, whole_number
from nrg_sampler.cli.recipe import guidance_from
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.settings import RewardGuidance

numbers = (
    st.integers().map(str)
    | st.floats().map(repr)
    | st.text(max_size=8)
    | st.sampled_from(["1e999", "-0", "1_000", "٣", "0x10", "9" * 5000, "", " 1 ", "1,5", "½", "\0", "nan", "--steps"])
)
OPTIONS = ["--steps", "--seed", "--num", "--fps", "--height", "--guidance-scale", "--scale", "--every", "--max-push"]
PARSER = cli.build_parser()


def parsed(*argv: str) -> argparse.Namespace | str:
    """Return the arguments, or the line on standard error."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            return PARSER.parse_args(argv)
    except SystemExit as exit_:
        return f"{exit_.code} {shown.getvalue()}"


def is_one_line(line: str) -> bool:
    return line.startswith("2 nrg-sampler: error: ") and line.count("\n") == 1 and len(line) < 12_000


@given(text=numbers)
def test_a_converter_gives_a_number_in_range_or_a_sentence(text: str) -> None:
    for convert, holds in (
        (whole_number(1), lambda value: value >= 1),
        (number, math.isfinite),
        (positive, lambda value: 0 < value < math.inf),
    ):
        value: Any = None
        with contextlib.suppress(argparse.ArgumentTypeError):
            value = convert(text)
        assert value is None or holds(value)


@given(option=st.sampled_from(OPTIONS), text=numbers)
def test_an_option_is_taken_or_refused_in_one_line(option: str, text: str) -> None:
    found = parsed("generate", "a red circle", f"{option}={text}")
    assert not isinstance(found, str) or is_one_line(found)


@given(name=st.sampled_from(sorted(settings_of(RewardGuidance))), text=numbers | almost_weights)
def test_a_setting_is_taken_or_refused_in_a_sentence(name: str, text: str) -> None:
    found = parsed("generate", "a red circle", "--set", f"{name}={text}")
    if isinstance(found, str):
        assert is_one_line(found)
        return
    refusal = "Expected"
    try:
        guidance_from(found)
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith("Expected")


@pytest.mark.parametrize("option", ["--seed", "--steps", "--num"])
def test_a_number_that_no_program_can_hold_is_refused(option: str) -> None:
    line = parsed("generate", "x", option, str(2**63))
    assert isinstance(line, str)
    assert is_one_line(line)
