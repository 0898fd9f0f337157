"""The examples for hosts too large for a test, on tiny pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families.full import full_flux

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, **replaced: str) -> dict[str, Any]:
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(source, name, "exec"), names)
    return names


def test_an_image_model_is_guided_by_a_reward_on_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    full_flux().save_pretrained("flux")
    small = {"black-forest-labs/FLUX.1-dev": "flux", "torch.bfloat16": "torch.float32"}
    names = run_example(
        "guide_flux", **small, **{"num_inference_steps=20": "num_inference_steps=3, height=32, width=48"}
    )
    assert (tmp_path / "warm.png").is_file()
    assert "warmth" in capsys.readouterr().out
    assert names["trace"].summary()["guided"] == 2
    unguided = names["pipe"](
        "a lighthouse at dusk", num_inference_steps=3, height=32, width=48, generator=torch.Generator().manual_seed(0)
    ).images[0]
    red, _, blue = np.mean(np.subtract(names["image"], unguided, dtype=float), axis=(0, 1))
    assert red > blue
    assert (EXAMPLES / "guide_flux.py").read_text(encoding="utf-8").count("# added") == 2
