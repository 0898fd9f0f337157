"""Saved rewards that somebody edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nrg_sampler import NRGFlowPipeline
from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.judges.shapes import load_pixel_judge
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.rewards.loading import load_reward
from nrg_sampler.shapes.judge import PixelJudge


def edited(folder: Path, part: str, **entries: Any) -> Path:
    """A copy of a bundled model with other entries in its config."""
    shutil.copytree(bundled_folder(part), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


@pytest.mark.parametrize(
    ("entry", "value"),
    [("num_blocks", "two"), ("std", ["a", "b", "c"]), ("std", [0, 1, 1]), ("axes", 3), ("axes", [])],
)
def test_an_edited_config_is_named(tmp_path: Path, entry: str, value: Any) -> None:
    folder = edited(tmp_path / "reward", "reward", **{entry: value})
    with pytest.raises(ValueError, match=r"Expected a reward as it was saved in '.*/reward', but none can be made of"):
        load_reward(folder)


@pytest.mark.parametrize(
    ("part", "entries", "problem"),
    [
        ("reward", {"num_blocks": 3}, r"lack blocks\.2\.\S+, blocks\.2\.\S+, blocks\.2\.\S+ and 24 more"),
        ("reward", {"num_blocks": 1}, r"have in addition blocks\.1\.\S+, blocks\.1\.\S+, blocks\.1\.\S+ and 24 more"),
        ("reward", {"num_members": 2}, r"lack further_members\.0\.\S+, .* more"),
        ("reward", {"gate_width": 0}, r"have in addition gate\.layers\.0\.bias, .* and 1 more"),
        ("reward", {"ffn_dim": 96}, r"have another shape of blocks\.0\.ffn\.\S+"),
        ("judge", {"depth": 3}, r"lack joint\.layers\.2\.\S+, .* and 21 more"),
        ("judge", {"depth": 1}, r"have in addition joint\.layers\.1\.\S+, .* and 21 more"),
        ("judge", {"dim": 80}, r"have another shape of blind_queries"),
    ],
)
def test_a_config_that_describes_other_weights_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], part: str, entries: dict[str, Any], problem: str
) -> None:
    folder = edited(tmp_path / part, part, **entries)
    sentence = rf"^Expected the weights that config\.json describes in '.*/{part}', but they {problem}; restore "
    named, plain = (load_reward, LatentReward) if part == "reward" else (load_pixel_judge, PixelJudge)
    for load in (named, plain.from_pretrained):
        with pytest.raises(ValueError, match=sentence):
            load(folder)
    assert "Some weights" not in capfd.readouterr().err  # the sentence says it


def test_a_pipeline_refuses_such_a_reward(tmp_path: Path) -> None:
    pipe = NRGFlowPipeline.from_pretrained("shapes")
    pipe.save_pretrained(tmp_path / "pipe")
    shutil.rmtree(tmp_path / "pipe" / "reward_model")
    edited(tmp_path / "pipe" / "reward_model", "reward", num_blocks=3)
    with pytest.raises(ValueError, match=r"Expected the weights that config\.json describes in '.*/reward_model'"):
        NRGFlowPipeline.from_pretrained(tmp_path / "pipe")


def test_loading_info_is_returned_where_it_is_asked_for() -> None:
    judge, info = PixelJudge.from_pretrained(bundled_folder("judge"), output_loading_info=True)
    assert isinstance(judge, PixelJudge)
    assert not info["missing_keys"]


def test_another_shape_is_named_by_diffusers_slower_loader_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="have another shape of blind_queries; restore"):
        PixelJudge.from_pretrained(edited(tmp_path / "judge", "judge", dim=80), low_cpu_mem_usage=False)


def test_a_pipeline_whose_denoiser_lacks_weights_is_refused(tmp_path: Path) -> None:
    shutil.copytree(bundled_folder("pipeline"), tmp_path / "pipe")
    file = tmp_path / "pipe" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_layers": 9}))
    with pytest.raises(
        ValueError, match=r"describes in '.*/transformer', but they lack blocks\.8\.\S+, .* and 24 more"
    ):
        NRGFlowPipeline.from_pretrained(tmp_path / "pipe")
