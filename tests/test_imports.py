"""What importing the package costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

import nrg_sampler

HEAVY = ("accelerate", "diffusers", "gradio", "matplotlib", "transformers")


@cache
def modules_after(statement: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter has loaded after ``statement``."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement", ["import nrg_sampler", "from nrg_sampler import RewardGuidance, attach, guided_velocity"]
)
def test_importing_the_package_loads_torch_and_nothing_heavier(statement):
    loaded = modules_after(statement)
    assert "torch" in loaded
    assert not loaded & set(HEAVY)


THE_HEAVIEST = """
import nrg_sampler.hosts.attach, nrg_sampler.hosts.pipeline
from nrg_sampler import attach
assert callable(attach)
"""


def test_the_check_above_can_fail():
    assert "diffusers" in modules_after(THE_HEAVIEST)


def test_every_public_name_is_there_and_sorted():
    assert nrg_sampler.__all__ == sorted(nrg_sampler.__all__)
    assert set(nrg_sampler.__all__) <= set(dir(nrg_sampler))
    for name in nrg_sampler.__all__:
        assert getattr(nrg_sampler, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = nrg_sampler.Nothing


def test_attach_is_the_function_whatever_was_imported_before():
    modules_after(THE_HEAVIEST)
