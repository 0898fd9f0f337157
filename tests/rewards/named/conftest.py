"""One folder of each reward, written once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_named
import tiny_qwen

from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.judge import NamedJudge


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = dict.fromkeys(tiny_named.NAMES, tiny_named.write) | dict.fromkeys(tiny_qwen.NAMES, tiny_qwen.write)
    return {name: make(name, tmp_path_factory.mktemp("named")) for name, make in makers.items()}


@pytest.fixture
def load(folders: dict[str, Path]) -> Callable[..., NamedJudge]:
    """Load a tiny reward by its name."""
    return lambda name, **options: load_named(f"{name}:{folders[name]}", **options)


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no cache of the machine take part."""
    import huggingface_hub.constants
    import torch

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
