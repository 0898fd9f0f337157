from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_fuzz import edited, json_values

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


@pytest.mark.parametrize(
    "settings", [{"damping": {"VQ": 0.123456789, "a b": 1 / 3}}, {"fading": [0.1, 1 / 3]}, {"floor": ["a,b", "c"]}]
)
def test_powers_and_floors_read_back_without_rounding(
    written: Manifest, tmp_path: Path, settings: dict[str, Any]
) -> None:
    guidance = replace(written.recipe.guidance, **settings)
    exact = replace(written, recipe=replace(written.recipe, guidance=guidance))
    exact.write(tmp_path / "a.json")
    assert Manifest.read(tmp_path / "a.json") == exact


def test_a_clip_carries_the_hash_of_its_frames(written: Manifest) -> None:
    clip = written.clips[0]
    assert (clip.sha256, clip.shape, clip.seconds) == (frames_sha256(FRAMES), (2, 4, 4, 3), 1.235)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('{"format": 1, "prompt": "\\ud800"}', "is not valid JSON"),
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


@pytest.mark.parametrize("clips", [[{"name": "x"}], [{"shape": [1], "odd": 2}], [3], 3, [], {}])
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


EDITS: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a seed that is a text": (("seed",), "x", "Expected `seed` to be a whole number of 0 or more, .* but got 'x'"),
    "a seed that torch cannot take": (("seed",), 2**70, "Expected `seed` to be a whole number"),
    "a prompt that is a list": (("prompt",), ["a"], r"Expected `prompt` to be a text, but got \['a'\]"),
    "an unknown dtype": (("dtype",), "float64", "Expected `dtype` to be one of float32, bfloat16, float16"),
    "an unknown scheduler": (("scheduler",), "ddim", "Expected `scheduler` to be one of euler"),
    "a search of another kind": (("search",), {"judge": "x"}, "Expected the search settings of this version, but"),
    "a search that is a text": (("search",), "yes", "Expected `search` to be an object or null"),
    "moments that are texts": (("search", "moments"), ["a"], "Expected `moments` to be between 0 and 1"),
    "no steps": (
        ("sampling", "num_inference_steps"),
        0,
        "Expected `num_inference_steps` of the sampling to be a whole",
    ),
    "a scale that is not finite": (
        ("sampling", "guidance_scale"),
        float("nan"),
        "Expected `guidance_scale` of the sampling",
    ),
    "an unknown setting that is not finite": (
        ("sampling", "eta"),
        float("nan"),
        "Expected `eta` of the sampling to be",
    ),
    "sampling that is a list": (("sampling",), [], "Expected `sampling` to be an object"),
    "guidance that is a list": (("guidance",), [1], r"Expected `guidance` to be an object, but got \[1\]"),
    "a floor of numbers": (("guidance", "floor"), [1], "Expected `floor` as axes"),
    "powers for no axis": (("guidance", "damping"), [], "Expected `damping` to be 0 or more"),
    "a huge weight": (("guidance", "weights"), [10**400], "Expected reward weights like"),
    "a huge power": (("guidance", "damping"), 10**400, "Expected `damping` to be 0 or more"),
    "a huge scale": (("guidance", "scale"), 10**400, "Expected `scale` to be a finite number"),
    "fps as a text": (("fps",), "8", "Expected `fps` to be a number above 0 or null, but got '8'"),
    "scores of texts": (
        ("clips", 0, "scores"),
        {"reward": {"TA": "high"}},
        "Expected `scores` of a clip to be an object",
    ),
    "a floor of long numbers": (("guidance", "floor"), [10**300] * 9, r"Expected `floor` as axes.{,120}$"),
    "versions that are a list": (("versions",), [], "Expected `versions` to be an object"),
    "a model that is a number": (("model",), 3, "Expected `model` to be a text, but got 3"),
}


@pytest.mark.parametrize(("path", "value", "message"), EDITS.values(), ids=EDITS)
def test_an_edited_entry_is_named(
    written: Manifest, tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    entries = json.loads(json.dumps(written.to_entries()))
    parent = entries
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=f"Expected a manifest that can be read, but in .*a.json: {message}"):
        Manifest.read(tmp_path / "a.json")


def test_json_nested_beyond_reading_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not valid JSON"):
        Manifest.read(tmp_path / "a.json")


FIRST = json.loads((Path(__file__).parents[1] / "data/first/manifest.json").read_text(encoding="utf-8"))
SHORT = {**FIRST, "clips": [{**clip, "trace": clip["trace"][:1]} for clip in FIRST["clips"]]}


@given(entries=edited(SHORT) | edited({**SHORT, "search": {"candidates": 2, "moments": [0.5]}}) | json_values)
def test_a_broken_manifest_is_a_sentence_and_a_whole_one_reads_back(entries: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(entries))
    manifest, refusal = None, ""
    try:
        manifest = Manifest.read(file)
    except ValueError as error:
        refusal = str(error)
    if manifest is None:
        assert re.fullmatch(r"(?s)Expected .{1,1000}", refusal)
        return
    manifest.write(file)
    assert Manifest.read(file) == manifest


@given(content=st.binary(max_size=40))
def test_bytes_that_are_no_manifest_are_a_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="Expected a manifest"):
        Manifest.read(tmp_path / "a.json")
