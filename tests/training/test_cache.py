"""The latent cache: complete shards or none, and never those of another model."""

from __future__ import annotations

import json

import pytest
import torch

from nrg_sampler.training.cache import CacheWarning, LatentCache, clip_name


def test_gives_back_what_was_added_also_after_a_restart(tmp_path):
    cache = LatentCache(tmp_path, {"model": "a"})
    assert cache.missing(["x", "y", "x"]) == ["x", "y"]
    cache.add({"x": torch.arange(3.0)})
    cache.add({"y": torch.ones(2)})
    again = LatentCache(tmp_path, {"model": "a"})
    assert again.missing(["x", "y", "z"]) == ["z"]
    assert len(again) == 2
    assert "x" in again
    assert torch.equal(again.get("x"), torch.arange(3.0))


def test_another_model_or_setting_has_a_cache_of_its_own(tmp_path):
    LatentCache(tmp_path, {"model": "a", "fps": 8}).add({"x": torch.zeros(1)})
    assert "x" not in LatentCache(tmp_path, {"model": "a", "fps": 16})
    assert "x" in LatentCache(tmp_path, {"fps": 8, "model": "a"})


@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_a_damaged_shard_is_dropped_and_encoded_again(tmp_path, damage):
    cache = LatentCache(tmp_path, {})
    cache.add({"x": torch.zeros(64)})
    cache.add({"y": torch.ones(64)})
    shard = cache.folder / cache._place["x"]
    content = shard.read_bytes()
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(content[:-8] if damage == "truncate" else content[:-1] + b"\1")
    again = LatentCache(tmp_path, {})
    assert again.dropped == [shard.name]
    assert again.missing(["x", "y"]) == ["x"]
    again.add({"x": torch.zeros(64)})
    assert not LatentCache(tmp_path, {}).dropped


def test_a_damaged_index_begins_anew(tmp_path):
    cache = LatentCache(tmp_path, {})
    cache.add({"x": torch.zeros(1)})
    (cache.folder / "index.json").write_text("{")
    with pytest.warns(CacheWarning, match=r"index.json is damaged; the clips of this cache are encoded again"):
        assert len(LatentCache(tmp_path, {})) == 0
    cache.add({"y": torch.zeros(1)})
    assert json.loads((cache.folder / "index.json").read_text())["settings"] == {}


def test_clips_are_named_by_content(tmp_path):
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for file in (first, second):
        file.write_bytes(b"same")
    assert clip_name(first) == clip_name(second)
    second.write_bytes(b"other")
    assert clip_name(first) != clip_name(second)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"shards": []}', '{"shards": {"a": 1}}', '{"shards": {"a": {}}}', b"\xff"]
)
@pytest.mark.filterwarnings("ignore::nrg_sampler.training.cache.CacheWarning")
def test_a_damaged_index_is_an_empty_cache(tmp_path, text):
    cache = LatentCache(tmp_path, {})
    cache.add({"a": torch.zeros(2)})
    (cache.folder / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    again = LatentCache(tmp_path, {})
    assert len(again) == 0
    again.add({"a": torch.ones(2)})
    assert LatentCache(tmp_path, {}).get("a").tolist() == [1, 1]


def test_two_runs_that_share_a_cache_lose_nothing_of_each_other(tmp_path):
    first, second = LatentCache(tmp_path, {}), LatentCache(tmp_path, {})
    first.add({"a": torch.zeros(1)})
    second.add({"b": torch.ones(1)})
    first.add({"c": torch.ones(1)})
    assert LatentCache(tmp_path, {}).missing(["a", "b", "c"]) == []


def test_an_index_that_names_what_a_shard_has_not_drops_the_shard(tmp_path):
    cache = LatentCache(tmp_path, {})
    cache.add({"a": torch.zeros(1)})
    index = cache.folder / "index.json"
    index.write_text(index.read_text().replace('"a"', '"b"'))
    again = LatentCache(tmp_path, {})
    assert len(again.dropped) == 1
    assert again.missing(["a", "b"]) == ["a", "b"]
