"""The stand-in for the sampler, for the tests that request it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sampler import FakeSampler

from nrg_sampler.cli import batch


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSampler]:
    """Replace the sampler wherever it is used and work in an empty folder."""
    from nrg_sampler.cli import replay

    fresh = type("FreshSampler", (FakeSampler,), {})
    for module in (batch, replay):
        monkeypatch.setattr(module, "Sampler", fresh)
    monkeypatch.chdir(tmp_path)
    return fresh
