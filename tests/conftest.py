"""Fixtures: tiny Wan pipelines that sample in a fraction of a second."""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest

# Before torch is loaded: threads that share networks this small wait for each other, and some trainings take ten times
# as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tiny import TowardTarget, schedulers, tiny_components, tiny_transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The same tries in every run, none of them timed; `pytest --hypothesis-profile=thorough` makes 10,000 of each.
_steady = {"deadline": None, "derandomize": True, "database": None}
_slow = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile("quick", max_examples=100, suppress_health_check=_slow, **_steady)
hypothesis.settings.register_profile("thorough", max_examples=10_000, suppress_health_check=_slow, **_steady)
hypothesis.settings.load_profile("quick")


@pytest.fixture(scope="session")
def components() -> dict[str, Any]:
    return tiny_components()


@pytest.fixture
def wan(components: dict[str, Any]) -> Any:
    """A stock WanPipeline with a fresh Euler scheduler; the modules are shared by all tests."""
    from diffusers import WanPipeline

    pipe = WanPipeline(**components, scheduler=schedulers()["euler"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def wan22(components: dict[str, Any]) -> Any:
    """Wan 2.2: the first transformer above half the noise, the second below."""
    from diffusers import WanPipeline

    second = tiny_transformer(seed=1)
    pipe = WanPipeline(**components, scheduler=schedulers()["unipc"], transformer_2=second, boundary_ratio=0.5)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def reward() -> TowardTarget:
    return TowardTarget()
