"""Fixtures: tiny Wan pipelines that sample in a fraction of a second."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tiny import TowardTarget, schedulers, tiny_components, tiny_transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")


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
