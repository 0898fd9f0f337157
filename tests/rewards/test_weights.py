"""Weights and powers as users write and mistype them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_fuzz import almost_weights, json_values

from nrg_sampler.guidance.trust import powers_of, read_powers
from nrg_sampler.rewards.weights import RewardWeights

AXES = ("VQ", "MQ", "TA")


def outcome(call: Any, *arguments: Any) -> Any:
    """Return what a call returns, or the sentence of its ValueError."""
    try:
        return call(*arguments)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("weights", [[], {}, ()])
def test_no_weights_at_all_are_refused(weights: Any) -> None:
    with pytest.raises(ValueError, match="Expected one number per axis, but got none"):
        RewardWeights.parse(weights)


@given(text=almost_weights | json_values)
def test_weights_are_numbers_for_the_axes_or_a_sentence(text: Any) -> None:
    weights = outcome(RewardWeights.parse, text)
    if isinstance(weights, str):
        assert weights.startswith("Expected")
        return
    found = outcome(weights.resolve, AXES)
    assert found.startswith("Expected") if isinstance(found, str) else len(found) == len(AXES) and min(found) >= 0


@given(values=st.lists(st.floats(0, 1e300), min_size=1, max_size=4))
def test_weights_that_are_written_out_read_back(values: list[float]) -> None:
    assert RewardWeights.parse(":".join(map(repr, values))).values == tuple(values)
    named = {f"axis{index}": value for index, value in enumerate(values)}
    text = ",".join(f"{name}={value!r}" for name, value in named.items())
    assert RewardWeights.parse(text) == RewardWeights.parse(named)


@given(text=almost_weights | json_values)
def test_powers_are_numbers_for_the_axes_or_a_sentence(text: Any) -> None:
    powers = outcome(read_powers, "damping", text)
    if isinstance(powers, str):
        assert powers.startswith("Expected `damping` to be 0 or more")
        return
    found = outcome(powers_of, "damping", powers, AXES, (1.0,) * 3)
    assert found.startswith("Expected") if isinstance(found, str) else len(found) == len(AXES) and min(found) >= 0
