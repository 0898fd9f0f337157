"""The JSON file beside every video: all that is needed to make it again, and to know whether that worked."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from nrg_sampler import entries as kinds
from nrg_sampler.files import fingerprint, replacing
from nrg_sampler.json_text import to_json
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.video import Frames, frames_sha256

FORMAT = 1
ENTRIES = {
    "command": kinds.TEXT,
    "seed": kinds.SEED,
    "fingerprints": kinds.TEXT.mapped(),
    "versions": kinds.TEXT.mapped(),
}
CLIP_ENTRIES = {
    "name": kinds.TEXT,
    "sha256": kinds.TEXT,
    "shape": kinds.COUNT.listed(),
    "seconds": kinds.NUMBER,
    "scores": kinds.NUMBER.mapped().mapped(),
    "trace": kinds.PLAIN.mapped().listed(),
    "lookahead": kinds.PLAIN.mapped(),
}
CLIP_REQUIRED = {"name", "sha256", "shape", "seconds"}
PACKAGES = ("nrg-sampler", "torch", "diffusers", "transformers", "numpy", "imageio-ffmpeg")


@dataclass(frozen=True)
class Clip:
    """One sampled video.

    Args:
        name: What it is in its file, for example ``guided``.
        sha256: Hash of the raw uint8 frames, before they are enlarged or encoded.
        shape: ``(T, H, W, 3)`` of those frames.
        seconds: Wall-clock time of the sampling.
        scores: Readings of the finished clip, by judge and axis.
        trace: What the guidance did, one row for each step.
        lookahead: What look-ahead samples did, if any pulled it, see ``LookaheadRun.to_dict``.
    """

    name: str
    sha256: str
    shape: tuple[int, ...]
    seconds: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)
    lookahead: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, frames: Frames, seconds: float, **about: Any) -> Clip:
        """Describe uint8 frames of shape ``(T, H, W, 3)``."""
        return cls(name, frames_sha256(frames), tuple(frames.shape), round(seconds, 3), **about)


@dataclass(frozen=True)
class Manifest:
    """What made a video: a recipe, a seed, and all that can change the outcome.

    Args:
        command: The subcommand that wrote it, ``generate`` or ``compare``.
        recipe: What was sampled, with every default filled in.
        seed: Seed of the ``torch.Generator`` on the CPU.
        fingerprints: Hash of the files of model and reward, see :func:`nrg_sampler.files.fingerprint`.
        clips: The sampled videos in the file.
        versions: Of the packages that can change the outcome.
        format: Version of the layout of the JSON file.
    """

    command: str
    recipe: Recipe
    seed: int
    fingerprints: dict[str, str]
    clips: list[Clip]
    versions: dict[str, str]
    format: int = FORMAT

    def weighted_axes(self) -> tuple[str, ...]:
        """Return the axes with a weight, of those that the reward's score of a clip is known for."""
        axes = tuple(next((clip.scores["reward"] for clip in self.clips if "reward" in clip.scores), {}))
        weights = self.recipe.guidance.axis_weights
        if weights.names is None and weights.values is not None and len(weights.values) != len(axes):
            return axes  # a reading that is not finite is left out of the scores
        return tuple(axis for axis, weight in zip(axes, weights.resolve(axes), strict=True) if weight)

    def to_entries(self) -> dict[str, Any]:
        """Return the manifest as the JSON file holds it: the recipe's entries stand among its own."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "recipe"}
        return {**own, **self.recipe.to_entries(), "clips": [asdict(clip) for clip in self.clips]}

    def write(self, path: Path) -> None:
        """Write as JSON; the file appears when it is complete."""
        with replacing(path) as partial:
            partial.write_text(to_json(self.to_entries(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: If there is no such file, it is not a manifest, or a newer release wrote it.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8-sig"))
            to_json(entries, ensure_ascii=False).encode()  # fails for half a surrogate pair, which is no text
        except OSError as error:
            raise ValueError(f"Expected a manifest, but {path} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Expected a manifest, but {path} is not valid JSON.") from error
        return cls._from_entries(entries, path)

    @classmethod
    def _from_entries(cls, entries: Any, path: Path) -> Manifest:
        if not isinstance(entries, dict) or "format" not in entries:
            raise ValueError(f"Expected a manifest written by nrg-sampler, but {path} is another kind of JSON.")
        if entries["format"] != FORMAT:
            found = entries["format"]
            raise ValueError(f"Expected a manifest of format {FORMAT}, but {path} has {found}: update nrg-sampler.")
        names = {item.name for item in fields(cls)} - {"recipe"}
        if lacking := names - entries.keys():
            raise ValueError(f"Expected the entries of a manifest, but {path} lacks {', '.join(sorted(lacking))}.")
        own = {name: value for name, value in entries.items() if name in names}
        try:
            kinds.require(own, ENTRIES)
            clips = _read_clips(own.pop("clips"))
            recipe = Recipe.from_entries({name: value for name, value in entries.items() if name not in names})
        except ValueError as error:
            raise ValueError(f"Expected a manifest that can be read, but in {path}: {error}") from error
        return cls(recipe=recipe, clips=clips, **own)


def _read_clips(entries: Any) -> list[Clip]:
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"Expected a list of clips, but got {kinds.shown(entries)}.")
    for clip in entries:
        if not isinstance(clip, dict) or not CLIP_REQUIRED <= clip.keys() <= CLIP_ENTRIES.keys():
            raise ValueError(f"Expected a list of clips, but an entry is incomplete: {kinds.shown(clip)}.")
        kinds.require(clip, CLIP_ENTRIES, " of a clip")
    return [Clip(**{**clip, "shape": tuple(clip["shape"])}) for clip in entries]


def changes(clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Subtract the first clip's scores from the last one's, by judge and axis; empty for a single clip."""
    if len(clips) < 2:
        return {}
    before, after = clips[0].scores, clips[-1].scores
    return {
        judge: {axis: round(after[judge][axis] - value, 4) for axis, value in axes.items() if axis in after[judge]}
        for judge, axes in before.items()
        if judge in after
    }


def format_change(change: Mapping[str, float]) -> str:
    """Return one line such as ``VQ +0.31 · MQ +0.05 · TA -0.02``."""
    return " · ".join(f"{axis} {round(value, 2) + 0.0:+.2f}" for axis, value in change.items())  # + 0.0: never -0.00


def versions() -> dict[str, str]:
    """Versions of what can change a video: Python, the packages, the machine's architecture."""
    found = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the entries that changed, as ``"torch 2.12.0 then, 2.13.0 now"``."""
    names = sorted(then.keys() | now.keys())
    changed = [name for name in names if then.get(name) != now.get(name)]
    return [f"{name} {then.get(name, 'absent')} then, {now.get(name, 'absent')} now" for name in changed]


def model_fingerprint(source: str | os.PathLike[str]) -> str | None:
    """Fingerprint a local folder, or the downloaded files of a Hub id; ``None`` if neither is there."""
    folder = Path(source)
    if folder.exists():
        return fingerprint(folder)
    from huggingface_hub import try_to_load_from_cache

    for index in ("model_index.json", "config.json"):
        cached = try_to_load_from_cache(str(source), index)
        if isinstance(cached, str):
            return f"revision {Path(cached).parent.name}"
    return None
