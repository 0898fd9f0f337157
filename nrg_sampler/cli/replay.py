"""``nrg-sampler generate --replay``: make a manifest's file again and say whether its frames are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nrg_sampler.json_text import to_json
from nrg_sampler.runs.device import require_device
from nrg_sampler.runs.earlier import require_todays
from nrg_sampler.runs.manifest import Manifest, differences
from nrg_sampler.runs.sampler import Sampler
from nrg_sampler.runs.writing import MAKERS, writable_files

DIFFERENT = 1


def replay(file: Path, out: Path | None, device: str | None, given: Sequence[str], as_json: bool) -> int:
    """Make the file of a manifest again.

    Args:
        file: The manifest.
        out: Folder or mp4 file; beside the original by default.
        device: Where to sample; where the original was by default.
        given: Options of a recipe that were given as well.
        as_json: Print for programs.

    Returns:
        0 if the frames are the same, 1 if they differ.

    Raises:
        ValueError: If options were given that the manifest decides, it cannot be read, its bundled model was exchanged
            since, or the device is absent.
    """
    if given:
        names = ", ".join(given)
        raise ValueError(f"Expected every setting from the manifest, but got {names} as well; leave it out.")
    old = Manifest.read(file)
    if old.command not in MAKERS:
        raise ValueError(f"Expected a manifest of {' or '.join(MAKERS)}, but {file} is of {old.command}.")
    require_todays(old, str(file))
    path = writable_files(old.command, _output(out, file))
    sampler = Sampler(replace(old.recipe, device=require_device(device or old.recipe.device)))
    new = MAKERS[old.command](sampler, old.seed, path)
    same = [clip.sha256 for clip in old.clips] == [clip.sha256 for clip in new.clips]
    changed = _changed(old, new)
    if as_json:
        print(to_json({"video": str(path), "identical": same, "changed": changed}))
    elif same:
        print(f"{path}: the frames are identical to those of {file}.")
    else:
        reason = "; ".join(changed) or "no version, model file or device that is recorded"
        print(f"{path}: the frames differ from those of {file}. What changed: {reason}.")
    return 0 if same else DIFFERENT


def _output(out: Path | None, manifest: Path) -> Path:
    folder, name = manifest.parent, f"{manifest.stem}-replay.mp4"
    if out is not None:
        folder, name = (out.parent, out.name) if out.suffix.lower() == ".mp4" else (out, name)
    return folder / name


def _changed(old: Manifest, new: Manifest) -> list[str]:
    def facts(manifest: Manifest) -> dict[str, str]:
        files = {f"{name} files": digest[:12] for name, digest in manifest.fingerprints.items()}
        return {**manifest.versions, **files, "device": manifest.recipe.device}

    return differences(facts(old), facts(new))
