"""What files that a stage keeps were made with, so that a later run notices when that has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nrg_sampler.files import fingerprint, replacing
from nrg_sampler.json_text import read_object, to_json


def models_in(folder: Path, *names: str) -> dict[str, str]:
    """Return the fingerprints of models that earlier stages saved; those that are not there are left out."""
    return {name: fingerprint(folder / name) for name in names if (folder / name).exists()}


def is_made(file: Path, origin: Mapping[str, str]) -> bool:
    """Return whether a file is there, made with the same models; one that says nothing of them counts as such.

    Raises:
        ValueError: If it was made with others, or what says so is damaged.
    """
    if not file.exists():
        return False
    beside = _beside(file)
    before = read_object(beside, f"remove it and {file.name} to make both again") if beside.exists() else {}
    differing = [name for name, value in origin.items() if before.get(name, value) != value]
    if differing:
        raise ValueError(
            f"Expected {file} to be made with the models in {file.parent}, but the {' and the '.join(differing)} "
            "there changed since; remove it to make it again, or name another folder."
        )
    return True


def note_origin(file: Path, origin: Mapping[str, str]) -> None:
    """Write down beside a file what it was made with."""
    with replacing(_beside(file)) as partial:
        partial.write_text(to_json(dict(origin), indent=2) + "\n", encoding="utf-8")


def _beside(file: Path) -> Path:
    return file.with_suffix(".origin.json")
