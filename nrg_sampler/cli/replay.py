"""``nrg-sampler generate --replay``: make a manifest's file again and say whether its frames are the same."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nrg_sampler.cli import compare, generate
from nrg_sampler.cli.batch import Make
from nrg_sampler.cli.parser import GUIDANCE, SAMPLING
from nrg_sampler.files import writable_folder
from nrg_sampler.runs.manifest import Manifest, differences
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.runs.sampler import Sampler

MAKERS: dict[str, Make] = {"generate": generate.make, "compare": compare.make}
FROM_FILE = (
    "prompt",
    "seed",
    "num",
    "model",
    "reward",
    "dtype",
    "fps",
    "scheduler",
    "paper",
    "plan",
    "best_of",
    "particles",
    "search",
    "judge",
    *SAMPLING,
    *GUIDANCE,
)
DIFFERENT = 1


def run(arguments: argparse.Namespace) -> int:
    """Replay ``arguments.replay`` into ``arguments.out``, beside the original by default."""
    _refuse_other_options(arguments)
    old = Manifest.read(arguments.replay)
    if old.command not in MAKERS:
        raise ValueError(f"Expected a manifest of {' or '.join(MAKERS)}, but {arguments.replay} is of {old.command}.")
    path = _output(arguments.out, arguments.replay)
    sampler = Sampler(Recipe.from_manifest(old, arguments.device))
    new = MAKERS[old.command](sampler, old.seed, path)
    same = [clip.sha256 for clip in old.clips] == [clip.sha256 for clip in new.clips]
    changed = _changed(old, new)
    if arguments.json:
        print(json.dumps({"video": str(path), "identical": same, "changed": changed}))
    elif same:
        print(f"{path}: the frames are identical to those of {arguments.replay}.")
    else:
        reason = "; ".join(changed) or "no version, model file or device that is recorded"
        print(f"{path}: the frames differ from those of {arguments.replay}. What changed: {reason}.")
    return 0 if same else DIFFERENT


def _refuse_other_options(arguments: argparse.Namespace) -> None:
    given = [name for name in FROM_FILE if getattr(arguments, name) not in (None, False)]
    if given:
        names = ", ".join("the prompt" if name == "prompt" else f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"Expected every setting from the manifest, but got {names} as well; leave it out.")


def _output(out: Path | None, manifest: Path) -> Path:
    folder, name = manifest.parent, f"{manifest.stem}-replay.mp4"
    if out is not None:
        folder, name = (out.parent, out.name) if out.suffix.lower() == ".mp4" else (out, name)
    return writable_folder(folder) / name


def _changed(old: Manifest, new: Manifest) -> list[str]:
    def facts(manifest: Manifest) -> dict[str, str]:
        files = {f"{name} files": digest[:12] for name, digest in manifest.fingerprints.items()}
        return {**manifest.versions, **files, "device": manifest.device}

    return differences(facts(old), facts(new))
