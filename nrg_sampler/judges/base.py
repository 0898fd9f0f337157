"""Judges of finished clips, and how they are loaded by name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nrg_sampler.rewards.base import normalised
from nrg_sampler.rewards.weights import RewardWeights, WeightsLike


@runtime_checkable
class Judge(Protocol):
    """Score finished clips on named axes, higher is better. It grades; it does not guide."""

    axes: tuple[str, ...]

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Return scores, shape ``(B, axes)``.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.
            fps: Frames per second of the clips.
        """
        ...


class OracleJudge:
    """Measurements of the pixels of a clip of the shapes world, each axis from 0 to 1; no network."""

    axes: tuple[str, ...] = ("VQ", "MQ", "TA")

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips; the rate does not matter.

        Raises:
            ValueError: If a prompt is not of that world, or the clips are too short.
        """
        from nrg_sampler.shapes.oracle import grade
        from nrg_sampler.shapes.scenes import parse

        parsed = [parse(prompt) for prompt in prompts]
        known = [prompt for prompt in parsed if prompt is not None]
        if len(known) < len(parsed):
            raise ValueError(
                f"Expected a prompt of the bundled world for the oracle, but got {prompts[parsed.index(None)]!r}; "
                "name another judge for other videos."
            )
        return grade(clips, known)


class PixelClipJudge:
    """A trained judge of pixels, which needs no rate; grades in its standard deviations.

    Args:
        judge: A ``PixelJudge``.
    """

    def __init__(self, judge: Any) -> None:
        self.axes, self._judge = judge.axes, judge

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips.

        Raises:
            ValueError: If a prompt has words that the judge never saw.
        """
        device = next(self._judge.parameters()).device
        return normalised(self._judge, self._judge(clips.to(device), prompts)).cpu()


def _oracle(source: str, device: str) -> Judge:
    if source:
        raise ValueError(f"Expected 'oracle' alone, but got 'oracle:{source}'; it has no files.")
    return OracleJudge()


def _videoreward(source: str, device: str) -> Judge:
    from nrg_sampler.judges.videoreward import VideoReward

    if not source:
        raise ValueError("Expected the folder of VideoReward, but got none; write videoreward:FOLDER.")
    return VideoReward.from_pretrained(source, device=device)


def load_pixel_judge(folder: str | Path | None = None) -> Any:
    """Load a pixel judge, frozen; the bundled one by default.

    Raises:
        ValueError: If there is none.
    """
    from nrg_sampler.checkpoints import bundled_folder, readable
    from nrg_sampler.shapes.judge import PixelJudge

    folder = Path(folder) if folder else bundled_folder("judge")
    if not (folder / "config.json").is_file():
        raise ValueError(f"Expected a pixel judge in {folder}, but found none; name the folder as pixel:FOLDER.")
    with readable(folder):
        return PixelJudge.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _pixel(source: str, device: str) -> Judge:
    return PixelClipJudge(load_pixel_judge(source).to(device))


class FramesJudge:
    """A module that scores frames without their prompts.

    Args:
        module: Maps clips ``(B, 3, T, H, W)`` in ``[0, 1]`` to ``(B, axes)``; has ``axes``.
    """

    def __init__(self, module: Any) -> None:
        self.axes, self._module = tuple(module.axes), module

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips by their frames alone."""
        scores: Tensor = self._module(clips)
        return scores


def _module(source: str, device: str) -> Judge:
    """A judge of the user's own: an object, or a class that is called without arguments."""
    found = _imported(source)
    judge = found() if isinstance(found, type) else found
    axes = getattr(judge, "axes", None)
    if not callable(judge) or not axes or isinstance(axes, str):
        raise ValueError(
            f"Expected a judge in {source!r}, a callable with named `axes`, but got {type(judge).__name__} without "
            "them; give it a tuple such as `axes = ('VQ', 'MQ', 'TA')`."
        )
    if isinstance(judge, torch.nn.Module):
        judge.to(device).eval()
    call = judge.forward if isinstance(judge, torch.nn.Module) else judge
    taken = [item for item in inspect.signature(call).parameters.values() if item.default is item.empty]
    return FramesJudge(judge) if len(taken) == 1 else judge


def _imported(source: str) -> Any:
    """What ``PACKAGE.MODULE:NAME`` or ``FILE.py:NAME`` stands for."""
    place, _, name = source.rpartition(":")
    try:
        if not place.endswith(".py"):
            return getattr(importlib.import_module(place), name)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None  # known by the suffix
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise ValueError(
            f"Expected a judge of yours as module:PACKAGE.MODULE:NAME or module:FILE.py:NAME, but {source!r} cannot "
            f"be imported ({error}); correct the name, or install its package."
        ) from error


# Makes each judge from what follows its name and a colon, and a device; to add a judge, name it here.
JUDGES: dict[str, Callable[[str, str], Judge]] = {
    "oracle": _oracle,
    "pixel": _pixel,
    "videoreward": _videoreward,
    "module": _module,
}


def load_judge(name: str, device: str = "cpu") -> Judge:
    """Make a judge.

    Args:
        name: ``"oracle"``, ``"pixel"`` for the bundled one, ``"pixel:FOLDER"``, ``"videoreward:FOLDER"``, or a judge
            of your own as ``"module:PACKAGE.MODULE:NAME"`` or ``"module:FILE.py:NAME"``.
        device: Where its network runs, if it has one.

    Raises:
        ValueError: If there is no such judge, or its folder does not fit.
    """
    kind, _, source = name.partition(":")
    if kind not in JUDGES:
        raise ValueError(f"Expected a judge from {', '.join(JUDGES)}, but got {name!r}.")
    return JUDGES[kind](source, device)


def judge_identity(name: str) -> str:
    """Return what tells a judge from every other one, also after its files have changed."""
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.files import fingerprint

    kind, _, source = name.partition(":")
    if kind == "pixel":
        return f"pixel {fingerprint(Path(source) if source else bundled_folder('judge'))}"
    if kind == "module":
        place = source.rpartition(":")[0]
        file = place if place.endswith(".py") else str(importlib.import_module(place).__file__)
        return f"{name} {fingerprint(Path(file))}"
    return f"{kind} {fingerprint(Path(source))}" if source else kind


def load_judges(names: Iterable[str], device: str = "cpu") -> dict[str, Judge]:
    """Make several, by the part of their name before the colon."""
    return {name.partition(":")[0]: load_judge(name, device) for name in names}


def chooser(judge: Judge, fps: float, weights: WeightsLike = None) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Return the weighted sum of a judge's axes, as ``best_of_n`` takes it.

    Args:
        judge: Who scores.
        fps: Frames per second of the clips.
        weights: One weight per axis of the judge; 1 for each by default.
    """
    resolved = torch.tensor(RewardWeights.parse(weights).resolve(judge.axes))

    def score(clips: Tensor, prompts: Sequence[str]) -> Tensor:
        return judge(clips, prompts, fps).cpu() @ resolved

    return score
