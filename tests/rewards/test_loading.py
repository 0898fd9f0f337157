"""Saved rewards that somebody edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.rewards.loading import load_reward


@pytest.mark.parametrize(
    ("entry", "value"),
    [("num_blocks", "two"), ("std", ["a", "b", "c"]), ("std", [0, 1, 1]), ("axes", 3), ("axes", [])],
)
def test_an_edited_config_is_named(tmp_path: Path, entry: str, value: Any) -> None:
    folder = tmp_path / "reward"
    shutil.copytree(bundled_folder("reward"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, entry: value}))
    with pytest.raises(ValueError, match=r"Expected a reward as it was saved in '.*/reward', but none can be made of"):
        load_reward(folder)
