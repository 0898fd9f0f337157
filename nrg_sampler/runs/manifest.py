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

from nrg_sampler.files import fingerprint, replacing
from nrg_sampler.rewards.base import RewardWeights
from nrg_sampler.video import Frames, frames_sha256

FORMAT = 1
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
    """

    name: str
    sha256: str
    shape: tuple[int, ...]
    seconds: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, name: str, frames: Frames, seconds: float, **about: Any) -> Clip:
        """Describe uint8 frames of shape ``(T, H, W, 3)``."""
        return cls(name, frames_sha256(frames), tuple(frames.shape), round(seconds, 3), **about)


@dataclass(frozen=True)
class Manifest:
    """What made a video.

    Args:
        command: The subcommand that wrote it, ``generate`` or ``compare``.
        prompt: The text.
        seed: Seed of the ``torch.Generator`` on the CPU.
        model: Name, folder or Hub id of the pipeline, as given.
        reward: Folder or Hub id of the reward, or ``None`` for the one that comes with the pipeline.
        fingerprints: Hash of the files of each, see :func:`nrg_sampler.files.fingerprint`.
        sampling: Arguments of the pipeline call.
        guidance: Fields of :class:`nrg_sampler.RewardGuidance`.
        device: Where it ran.
        dtype: Of the weights.
        fps: Frames per second of the file.
        clips: The sampled videos in the file.
        versions: Of the packages that can change the outcome.
        scheduler: One of :data:`nrg_sampler.schedulers.SCHEDULERS`, or ``None`` for the model's own.
        search: Fields of :class:`nrg_sampler.search.Search`, or ``None`` if only one candidate was sampled.
        proposed: Whether the reward proposed the weights from the prompt.
        checkpointing: Whether the reward saved memory.
        format: Version of this layout.
    """

    command: str
    prompt: str
    seed: int
    model: str
    reward: str | None
    fingerprints: dict[str, str]
    sampling: dict[str, Any]
    guidance: dict[str, Any]
    device: str
    dtype: str
    fps: float
    clips: list[Clip]
    versions: dict[str, str]
    scheduler: str | None = None
    search: dict[str, Any] | None = None
    proposed: bool = False
    checkpointing: bool = False
    format: int = FORMAT

    def weighted_axes(self) -> tuple[str, ...]:
        """Return the axes that the guidance gives a weight, of those that the reward's reading of a clip is known for."""
        axes = tuple(next((clip.scores["reward"] for clip in self.clips if "reward" in clip.scores), {}))
        weights = RewardWeights.parse(self.guidance.get("weights"))
        if weights.names is None and weights.values is not None and len(weights.values) != len(axes):
            return axes  # a reading that is not finite is left out of the scores
        return tuple(axis for axis, weight in zip(axes, weights.resolve(axes), strict=True) if weight)

    def write(self, path: Path) -> None:
        """Write as JSON; the file appears when it is complete."""
        with replacing(path) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            ValueError: If there is no such file, it is not a manifest, or a newer release wrote it.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"Expected a manifest, but {path} cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"Expected a manifest, but {path} is not valid JSON.") from error
        return cls._from_entries(entries, path)

    @classmethod
    def _from_entries(cls, entries: Any, path: Path) -> Manifest:
        wanted = {item.name for item in fields(cls)}
        if not isinstance(entries, dict) or "format" not in entries:
            raise ValueError(f"Expected a manifest written by nrg-sampler, but {path} is another kind of JSON.")
        if entries["format"] != FORMAT:
            found = entries["format"]
            raise ValueError(f"Expected a manifest of format {FORMAT}, but {path} has {found}: update nrg-sampler.")
        entries = {
            "scheduler": None,
            "search": None,
            "proposed": False,
            "checkpointing": False,
            **entries,
        }  # written before there was a choice
        if wanted != entries.keys():
            odd = ", ".join(sorted(wanted ^ entries.keys()))
            raise ValueError(f"Expected the entries of a manifest, but {path} lacks or adds: {odd}.")
        try:
            clips = [Clip(**{**clip, "shape": tuple(clip["shape"])}) for clip in entries["clips"]]
        except (TypeError, KeyError) as error:
            raise ValueError(f"Expected a list of clips in {path}, but an entry is incomplete.") from error
        return cls(**{**entries, "clips": clips})


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
