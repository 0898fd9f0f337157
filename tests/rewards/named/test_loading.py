"""Names, folders and caches of published rewards, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from safetensors.torch import load_file, save_file

from nrg_sampler.rewards.named import TABLE, load_named
from nrg_sampler.rewards.named.loading import BUILDERS, resolve
from nrg_sampler.rewards.named.table import CLIP_H, CLIP_L

SCORE = {"frames": torch.full((1, 3, 1, 28, 28), 0.5)}


def cached(tmp_path: Path, hub_id: str, folder: Path) -> None:
    """Put a folder's files where the Hub's client keeps what it has downloaded."""
    repository = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a reward's folder that a test may damage."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / "copy"))


def test_every_entry_can_be_loaded() -> None:
    assert set(BUILDERS) == {entry.name for entry in TABLE}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((entry.name, entry.name) for entry in TABLE),
        ("clip", "clipscore"),
        ("CLIP_score", "clipscore"),
        ("PickScore", "pickscore"),
        ("hps", "hpsv2"),
        ("HPSv2.0", "hpsv2"),
        ("hps_v2.1", "hpsv2.1"),
        ("aesthetic_v2_5", "aesthetic-v2.5"),
        ("yuvalkirstain/PickScore_v1", "pickscore"),
        ("image_reward", "imagereward"),
        ("ImageReward-v1.0", "imagereward"),
        ("THUDM/ImageReward", "imagereward"),
        (CLIP_L, "clipscore"),
    ],
)
def test_names_aliases_and_hub_ids_mean_an_entry(typed: str, name: str) -> None:
    entry, folder = resolve(typed)
    assert (entry.name, folder) == (name, None)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("pikscore", "did you mean 'pickscore'"),
        ("hpsv2.2", "did you mean 'hpsv2"),
        ("aestetic", "did you mean 'aesthetic'"),
        ("image-rewards", "did you mean 'imagereward'"),
        ("visionrewards", "did you mean 'visionreward'"),
        ("zzz", "'zzz'; use one of pickscore, hpsv2, hpsv2.1, clipscore, aesthetic, aesthetic-v2.5, imagereward"),
        ("pickscore:nowhere", "'nowhere' is none; write pickscore:FOLDER"),
        ("pickscore:", "write pickscore:FOLDER"),
        ("xswu/HPSv2", "could be hpsv2 or hpsv2.1; say which, as hpsv2 or hpsv2.1"),
        ("vlm:http://localhost:8000#model", "'vlm' cannot: a model behind a URL has no gradient"),
        ("ocr", "'ocr' cannot: it reads the text in a picture by a package of its own.*; use one of pickscore"),
        ("unifiedreward", "'unifiedreward' cannot: it writes its scores as text"),
        ("UnifiedReward-2.0", "'UnifiedReward-2.0' cannot: it writes its scores as text"),
        ("visionreward-video", "'visionreward-video' cannot: it is published with code of its own"),
        ("videoscore2", "'videoscore2' cannot: it writes its scores as text"),
        ("dover", "'dover' cannot: its network is of a package of its own"),
    ],
)
def test_what_is_no_entry_is_refused_with_what_to_type_instead(typed: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_named(typed)


@pytest.mark.parametrize("name", ["hpsv2", "hpsv2.1", "aesthetic", "aesthetic-v2.5", "imagereward"])
def test_a_folder_alone_is_known_by_its_file(name: str, folders: dict[str, Path]) -> None:
    assert resolve(str(folders[name]))[0].name == name


def test_a_folder_that_could_be_of_two_or_of_none_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    clip = folders["clipscore"]
    with pytest.raises(ValueError, match=f"could be pickscore or clipscore; say which, as pickscore:{clip} or"):
        load_named(clip)
    with pytest.raises(ValueError, match="has the files of none"):
        load_named(tmp_path)


def test_a_name_alone_is_loaded_from_the_caches(folders: dict[str, Path], tmp_path: Path) -> None:
    head = "aesthetic_predictor_v2_5.pth"
    for entry in TABLE:
        if entry.on_hub and not (tmp_path / "hub" / f"models--{entry.source.replace('/', '--')}").exists():
            cached(tmp_path, entry.source, folders[entry.name])
    shutil.copytree(folders["aesthetic-v2.5"], tmp_path / "tower")
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    shutil.move(tmp_path / "tower" / head, tmp_path / "torch" / "checkpoints" / head)
    assert load_named("pickscore").entry.name == "pickscore"
    assert load_named("hps").entry.name == "hpsv2"
    assert load_named("clip").entry.name == "clipscore"
    assert load_named("aesthetic-v2.5", base=tmp_path / "tower")(**SCORE).isfinite()


@pytest.mark.parametrize("base", [None, "folder", CLIP_H])
def test_the_tokenizer_may_be_elsewhere(base: str | None, copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder, other = copied("pickscore"), tmp_path / "other"
    other.mkdir()
    for file in folder.glob("token*"):
        shutil.move(file, other / file.name)
    cached(tmp_path, CLIP_H, other)
    judge: Any = load_named(f"pickscore:{folder}", base=str(other) if base == "folder" else base)
    assert len(judge.tokenizer) == len(tiny_named.VOCABULARY)


def test_a_tokenizer_as_vocabulary_and_merges_is_read(copied: Callable[[str], Path]) -> None:
    folder = copied("pickscore")
    prompt = "a red circle"
    expected = load_named(f"pickscore:{folder}")(**SCORE, prompts=[prompt])
    for file in folder.glob("token*"):
        file.unlink()
    (folder / "vocab.json").write_text(json.dumps(tiny_named.VOCABULARY), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    torch.testing.assert_close(load_named(f"pickscore:{folder}")(**SCORE, prompts=[prompt]), expected)


@pytest.mark.parametrize("name", ["pickscore", "clipscore"])
def test_weights_as_torch_writes_them_with_old_counters_are_read(name: str, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    state = load_file(folder / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_named(f"{name}:{folder}")(**SCORE, prompts=["a"]).isfinite()


FILES = {
    "pickscore": "model.safetensors", "clipscore": "model.safetensors", "hpsv2": "HPS_v2_compressed.pt",
    "hpsv2.1": "HPS_v2.1_compressed.pt", "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
    "aesthetic-v2.5": "aesthetic_predictor_v2_5.pth", "imagereward": "ImageReward.pt",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_an_absent_file_is_named_with_its_place_and_what_to_pass(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"Expected .* in (the local cache of|.*torch).* is not there; get it (with|from) .*"
    ):
        load_named(name)
    folder = copied(name)
    (folder / FILES[name]).unlink()
    with pytest.raises(ValueError, match="is not there") as caught:
        load_named(f"{name}:{folder}")
    text = str(caught.value)
    assert FILES[name] in text and f"the folder {folder}" in text and f"pass its folder as {name}:FOLDER" in text


@pytest.mark.parametrize(
    ("name", "file"),
    [("hpsv2", "tokenizer.json"), ("aesthetic", "model.safetensors"), ("imagereward", "tokenizer.json")],
)
def test_an_absent_tokenizer_or_tower_is_looked_for_in_three_places(
    name: str, file: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copied(name)
    (folder / file).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty, then the folder .*copy, then the local cache of .*as `base`"):
        load_named(f"{name}:{folder}", base=tmp_path / "empty")


def test_a_gated_file_is_said_to_be_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError

    def refuse(hub_id: str, name: str, local_files_only: bool) -> str:
        assert not local_files_only
        raise GatedRepoError("no", response=httpx.Response(403, request=httpx.Request("GET", "http://localhost")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=r"HPS_v2_compressed.pt of xswu/HPSv2, but that is gated; accept its terms"):
        load_named("hpsv2", download=True)


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "aesthetic", "aesthetic-v2.5"])
@pytest.mark.parametrize(("change", "message"), [("lacks", "it lacks .*layernorm"), ("has", "has too many: .*extra")])
def test_missing_and_surplus_keys_are_named(
    name: str, change: str, message: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    state = load_file(folder / "model.safetensors")
    if change == "lacks":
        del state[next(key for key in state if "vision_model.post_layernorm" in key)]
    else:
        state["vision_model.extra"] = torch.ones(1)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_named(f"{name}:{folder}")


@pytest.mark.parametrize("name", ["aesthetic", "aesthetic-v2.5"])
def test_a_head_with_other_keys_is_refused(name: str, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    torch.save({"layers.0.weight": torch.ones(1024, 24)}, folder / FILES[name])
    with pytest.raises(ValueError, match=f"weights of the model in .*{FILES[name].replace('+', '.')}, but it lacks"):
        load_named(f"{name}:{folder}")


@pytest.mark.parametrize("text", ["{}", "no JSON", '{"model_type": "siglip"}', "[]"])
def test_a_config_of_another_model_is_refused(text: str, copied: Callable[[str], Path]) -> None:
    folder = copied("pickscore")
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected the config of a CLIP model in .*config.json, but got none"):
        load_named(f"pickscore:{folder}")
