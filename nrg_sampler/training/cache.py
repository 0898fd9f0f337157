"""Latents on disk: every clip and prompt is encoded once, and only with the model and settings it is used with."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nrg_sampler.files import replacing, writable_folder
from nrg_sampler.json_text import to_json
from nrg_sampler.locks import in_turn

INDEX = "index.json"


class CacheWarning(UserWarning):
    """A cache that cannot be read and is made again."""


class LatentCache:
    """Tensors by name in safetensors shards, in a folder of their own for each model and setting.

    A shard appears when it is complete, and its checksum is kept beside it: truncated and damaged shards are detected
    when the cache is opened, dropped and encoded again. Several runs may share a cache: none loses what another adds.

    Args:
        folder: Where caches are kept.
        settings: Everything that decides what the tensors are: fingerprint of the model, sizes, frame rate.

    Raises:
        ValueError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the folder and drop damaged shards."""
        self.settings = dict(settings)
        digest = hashlib.sha256(to_json(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = writable_folder(folder / digest[:16])
        self._shards: dict[str, dict[str, Any]] = {}
        self._place: dict[str, str] = {}  # name -> shard
        with in_turn(self.folder):
            self.dropped = self._open()

    def __contains__(self, name: str) -> bool:
        """Return whether a tensor is cached."""
        return name in self._place

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._place)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are not cached yet, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self._place]

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard."""
        names = sorted(tensors)
        shard = f"shard-{hashlib.sha256(to_json(names).encode()).hexdigest()[:12]}.safetensors"
        with in_turn(self.folder):
            self._shards = {**self._shards, **self._indexed()}  # another run may have added some
            with replacing(self.folder / shard) as partial:
                save_file({name: tensors[name].contiguous() for name in names}, partial)
                checksum = _sha256(partial)
            self._shards[shard] = {"sha256": checksum, "names": names}
            self._place.update(dict.fromkeys(names, shard))
            self._write_index()

    def get(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: If it was never added.
        """
        with safe_open(self.folder / self._place[name], framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor

    def _open(self) -> list[str]:
        """Read the index and return the shards that are missing or damaged."""
        dropped = []
        for shard, about in self._indexed().items():
            if not _holds(self.folder / shard, about):
                dropped.append(shard)
                continue
            self._shards[shard] = about
            self._place.update(dict.fromkeys(about["names"], shard))
        self._write_index()
        return dropped

    def _indexed(self) -> dict[str, dict[str, Any]]:
        """Read what the index says of the shards."""
        file = self.folder / INDEX
        try:
            stored = json.loads(file.read_text(encoding="utf-8-sig"))["shards"] if file.exists() else {}
            return {
                shard: {"sha256": str(one["sha256"]), "names": [str(name) for name in one["names"]]}
                for shard, one in stored.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):  # damaged: everything is encoded again
            warnings.warn(f"{file} is damaged; the clips of this cache are encoded again.", CacheWarning, stacklevel=2)
            return {}

    def _write_index(self) -> None:
        with replacing(self.folder / INDEX) as partial:
            partial.write_text(to_json({"settings": self.settings, "shards": self._shards}, indent=1) + "\n")


def _holds(shard: Path, about: Mapping[str, Any]) -> bool:
    """Return whether a shard is whole and has what the index says of it."""
    if not shard.is_file() or _sha256(shard) != about["sha256"]:
        return False
    with safe_open(shard, framework="pt") as tensors:
        return set(about["names"]) <= set(tensors.keys())


def clip_name(file: Path) -> str:
    """Name a clip by the content of its file, so that a changed file is another clip.

    ``shown`` is the rule by which its frames are chosen; clips that 0.1.0 cached, the nearest frames, are encoded
    again.
    """
    return f"clip/shown/{_sha256(file)}"


def prompt_name(prompt: str) -> str:
    """Name the features of a prompt."""
    return f"prompt/{hashlib.sha256(prompt.encode()).hexdigest()}"


def step_name(clip: str, place: int) -> str:
    """Name latents and velocity of a step on the way to a sampled clip, shape ``(2, C, T, H, W)``."""
    return f"{clip}/step {place}"


def sigmas_name(clip: str) -> str:
    """Name the noise levels of these steps, shape ``(K,)``."""
    return f"{clip}/sigmas"


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def half(tensor: Tensor) -> Tensor:
    """Convert to what is cached: half precision, on the CPU."""
    return tensor.detach().to("cpu", torch.float16)
