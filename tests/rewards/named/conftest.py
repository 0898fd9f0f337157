"""One folder of each reward, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_named

from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.judge import FrameJudge


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny_named.write(name, tmp_path_factory.mktemp("named")) for name in tiny_named.NAMES}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., FrameJudge]:
    """Load a tiny reward by its name."""
    return lambda name, **options: load_named(f"{name}:{folders[name]}", **options)


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no cache of the machine take part."""
    import huggingface_hub.constants
    import torch

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
