"""What the first release wrote loads and means the same: a manifest, and a reward. The files are in ``tests/data``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, RewardWeights, cli
from nrg_sampler.runs.manifest import Manifest

DATA = Path(__file__).parent / "data" / "first"


def test_a_manifest_says_what_it_said() -> None:
    manifest = Manifest.read(DATA / "manifest.json")
    recipe = manifest.recipe
    assert (manifest.command, manifest.seed, recipe.prompt) == ("generate", 5, "a red circle moving right")
    assert recipe.guidance == RewardGuidance(
        weights={"VQ": 1, "MQ": 2}, every=1, reuse=False, max_push=0.3, damping="VQ=1,MQ=0.5,TA=2", frames="all"
    )
    assert recipe.guidance.weights == RewardWeights((1.0, 2.0), ("VQ", "MQ"))
    assert (recipe.model, recipe.reward, recipe.fps) == ("shapes", None, 8.0)
    assert recipe.sampling["num_inference_steps"] == 3
    assert not recipe.checkpointing


def test_a_manifest_without_what_later_ones_name_means_the_settings_of_its_time(tmp_path: Path) -> None:
    entries = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    for name in ("scheduler", "search", "proposed", "checkpointing"):
        del entries[name]
    for name in ("every", "reuse"):
        del entries["guidance"][name]
    (tmp_path / "old.json").write_text(json.dumps(entries))
    assert Manifest.read(tmp_path / "old.json") == Manifest.read(DATA / "manifest.json")


def test_it_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the bit on the machine that made it; on any other the sums round otherwise and the clip reads the same."""
    assert cli.main(["generate", "--replay", str(DATA / "manifest.json"), "--out", str(tmp_path)]) in (0, 1)
    (then,) = Manifest.read(DATA / "manifest.json").clips
    (now,) = Manifest.read(tmp_path / "manifest-replay.json").clips
    assert now.scores["reward"] == pytest.approx(then.scores["reward"], abs=0.01)  # the oracle was made anew since
    assert [row["push_ratio"] for row in now.trace if not row["skipped"]] == pytest.approx(
        [row["push_ratio"] for row in then.trace if not row["skipped"]], rel=1e-3
    )


def test_a_saved_reward_scores_and_proposes_the_same() -> None:
    reward = LatentReward.from_pretrained(DATA / "reward", dtype=torch.float32)
    expected = json.loads((DATA / "reward.json").read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 2, 4, 4, generator=generator)
    conditioning = Conditioning(torch.randn(2, 3, 8, generator=generator))
    raw = reward(latents, torch.tensor([0.3, 0.8]), conditioning)
    torch.testing.assert_close(raw, torch.tensor(expected["raw"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(reward.propose(conditioning), torch.tensor(expected["proposed"]), atol=1e-5, rtol=1e-4)
    assert reward.recommended_scale == (1.0, 2.0, 4.0)
    assert reward.num_members == 2
