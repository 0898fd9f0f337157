"""Fixtures: tiny Wan pipelines that sample in a fraction of a second."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
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


def write_pairs(folder: Path, prompts: Sequence[str], clips: int) -> Path:
    """Write stand-ins for clips and a preference file that compares two of them under each prompt."""
    for index in range(clips):
        (folder / f"{index}.mp4").write_bytes(bytes([index]))
    labels = ("A", "B", "same")
    lines = ["path_A,path_B,prompt,VQ,MQ,TA"]
    for index, prompt in enumerate(prompts):
        said = ",".join(labels[(index + axis) % 3] for axis in range(3))
        lines.append(f"{index % clips}.mp4,{(index + 1) % clips}.mp4,{prompt},{said}")
    file = folder / "pairs.csv"
    file.write_text("\n".join(lines) + "\n")
    return file
