from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.runs import manifest
from nrg_sampler.runs.manifest import Clip, Manifest
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.video import frames_sha256

FRAMES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


@pytest.fixture
def written() -> Manifest:
    clip = Clip.of("guided", FRAMES, 1.23456, scores={"reward": {"TA": 0.5}}, trace=[{"step": 0, "sigma": 0.9}])
    return Manifest(
        command="generate",
        recipe=Recipe(
            prompt="ein größerer Kreis",
            guidance=RewardGuidance(weights="VQ=0.1,TA=0.2", damping="VQ=1,TA=0.5", floor="TA", stop=1 / 3),
            sampling={"num_inference_steps": 4},
            model="shapes",
            reward=None,
            device="cpu",
            dtype="float32",
            fps=8,
            search={"candidates": 2, "moments": [0.5]},
        ),
        seed=3,
        fingerprints={"model": "ab"},
        clips=[clip],
        versions=manifest.versions(),
    )


def test_a_manifest_reads_back_equal(written: Manifest, tmp_path: Path) -> None:
    written.write(tmp_path / "a.json")
    assert Manifest.read(tmp_path / "a.json") == written


def test_a_clip_carries_the_hash_of_its_frames(written: Manifest) -> None:
    clip = written.clips[0]
    assert (clip.sha256, clip.shape, clip.seconds) == (frames_sha256(FRAMES), (2, 4, 4, 3), 1.235)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "another kind of JSON"),
        ('{"a": 1}', "another kind of JSON"),
        ('{"format": 99}', "of format 1, but .* has 99: update nrg-sampler"),
        ('{"format": 1}', "lacks clips, command"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        Manifest.read(tmp_path / "a.json")


@pytest.mark.parametrize("clips", [[{"name": "x"}], [{"shape": [1], "odd": 2}], [3], 3])
def test_incomplete_clips_are_refused(written: Manifest, tmp_path: Path, clips: Any) -> None:
    written.write(tmp_path / "a.json")
    entries = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    (tmp_path / "a.json").write_text(json.dumps({**entries, "clips": clips}))
    with pytest.raises(ValueError, match="Expected a list of clips"):
        Manifest.read(tmp_path / "a.json")


def test_a_missing_manifest_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a manifest, but .*none.json cannot be read"):
        Manifest.read(tmp_path / "none.json")


def test_versions_name_the_packages_that_can_change_a_video() -> None:
    assert {"python", "torch", "diffusers", "transformers", "nrg-sampler"} <= manifest.versions().keys()


def test_differences_name_each_changed_version_once() -> None:
    then = {"torch": "2.12.0", "numpy": "2.0", "old": "1"}
    now = {"torch": "2.13.0", "numpy": "2.0", "new": "2"}
    assert manifest.differences(then, now) == [
        "new absent then, 2 now",
        "old 1 then, absent now",
        "torch 2.12.0 then, 2.13.0 now",
    ]
    assert manifest.differences(now, now) == []


def test_a_local_folder_is_fingerprinted_and_an_unknown_name_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert len(manifest.model_fingerprint(tmp_path) or "") == 64
    assert manifest.model_fingerprint("nobody/never-downloaded") is None


def test_values_that_json_cannot_hold_fail_before_anything_is_written(written: Manifest, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        replace(written, recipe=replace(written.recipe, sampling={"odd": object()})).write(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())
