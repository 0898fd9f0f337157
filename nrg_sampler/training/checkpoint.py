"""Training checkpoints with checksums, so that a damaged one is ignored; the newest two are kept."""

from __future__ import annotations

import hashlib
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.files import remove_stale_partials, replacing

KEPT = 2


class CheckpointWarning(UserWarning):
    """A checkpoint that could not be used."""


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``checkpoint-{step}.pt`` and its SHA-256 beside it, and remove all but the newest two.

    Args:
        folder: Made if need be.
        step: Optimiser steps done.
        state: What `load_checkpoint` gives back: tensors, numbers, and dicts and lists of them.
    """
    file = folder / f"checkpoint-{step}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        torch.save(state, partial)
        checksum = _sha256(partial)
        # Before the file itself: a checkpoint without a checksum never exists.
        with replacing(_checksum_file(file)) as text:
            text.write_text(checksum + "\n")
    for _, old in _checkpoints(folder)[KEPT:]:
        old.unlink()
        _checksum_file(old).unlink(missing_ok=True)
    return file


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest whole checkpoint onto the CPU; ``None`` if there is none.

    Warns:
        CheckpointWarning: If a newer one is damaged.
    """
    remove_stale_partials(folder)
    for step, file in _checkpoints(folder):
        noted = _checksum_file(file)
        if not noted.is_file() or noted.read_bytes().strip() != _sha256(file).encode():
            warnings.warn(
                f"The checkpoint of step {step} in {folder} is damaged; training goes on from the one before it.",
                CheckpointWarning,
                stacklevel=2,
            )
            continue
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    return None


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint, without reading it; ``None`` if there is none."""
    return next((file for _, file in _checkpoints(folder)), None)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files, newest first."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)\.pt", file.name), file) for file in folder.glob("checkpoint-*.pt")]
    return sorted(((int(match[1]), file) for match, file in matches if match), reverse=True)


def _checksum_file(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
