"""Judges by name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.judges.base import Judge
from nrg_sampler.judges.shapes import OracleJudge, PixelClipJudge, load_pixel_judge
from nrg_sampler.judges.vlm import QUESTIONS, SCALE, VlmJudge
from nrg_sampler.rewards.by_name import local_fingerprint
from nrg_sampler.rewards.frame_scorer import Wanted
from nrg_sampler.rewards.named import TABLE, load_named
from nrg_sampler.rewards.named.table import find
from nrg_sampler.rewards.own import KIND, file_of, load_own


class FramesJudge:
    """A module that scores frames, with their prompts and their rate if its parameters have these names.

    Args:
        module: Maps clips ``(B, 3, T, H, W)`` in ``[0, 1]``, and ``prompts`` or ``fps`` by name if it takes them, to
            ``(B, axes)``; has ``axes``.
    """

    def __init__(self, module: Any) -> None:
        self.axes, self._module, self._wanted = tuple(module.axes), module, Wanted.by(module)

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Grade clips."""
        scores: Tensor = self._module(clips, **self._wanted.arguments(len(clips), prompts, fps))
        return scores


def _oracle(source: str, device: str) -> Judge:
    if source:
        raise ValueError(f"Expected 'oracle' alone, but got 'oracle:{source}'; it has no files.")
    return OracleJudge()


def _videoreward(source: str, device: str) -> Judge:
    from nrg_sampler.judges.videoreward import VideoReward

    return VideoReward.from_pretrained(source or None, device=device)


def _pixel(source: str, device: str) -> Judge:
    return PixelClipJudge(load_pixel_judge(source).to(device))


def _vlm(source: str, device: str) -> Judge:
    return VlmJudge.from_name(source)


def _module(source: str, device: str) -> Judge:
    """A judge of the user's own: an object, or a class that is called without arguments."""
    judge: Any = load_own(f"{KIND}:{source}", device=device)
    call = judge.forward if isinstance(judge, torch.nn.Module) else judge
    needed = [item for item in inspect.signature(call).parameters.values() if item.default is item.empty]
    in_turn = [item for item in needed if item.kind is not item.KEYWORD_ONLY]
    wanted = Wanted.by(judge)
    by_name = (wanted.prompts or wanted.fps) and len(in_turn) < len(("clips", "prompts", "fps"))
    return FramesJudge(judge) if by_name or len(needed) == 1 else judge


# Makes each judge from what follows its name and a colon, and a device; to add a judge, name it here.
JUDGES: dict[str, Callable[[str, str], Judge]] = {
    "oracle": _oracle,
    "pixel": _pixel,
    "videoreward": _videoreward,
    "vlm": _vlm,
    KIND: _module,
}


def load_judge(name: str, device: str = "cpu") -> Judge:
    """Make a judge.

    Args:
        name: ``"oracle"``, ``"pixel"`` for the bundled one, ``"pixel:FOLDER"``, a vision-language model behind a
            server as ``"vlm:URL#MODEL"``, a published reward as ``"videoreward"`` or ``"videoreward:FOLDER"``, or a
            judge of your own as ``"module:PACKAGE.MODULE:NAME"`` or ``"module:FILE.py:NAME"``.
        device: Where its network runs, if it has one.

    Raises:
        ValueError: If there is no such judge, or its folder does not fit.
    """
    kind, _, source = name.partition(":")
    if kind not in JUDGES and find(kind) is not None:
        return FramesJudge(load_named(name, device=device))
    if kind not in JUDGES:
        known = dict.fromkeys([*JUDGES, *(entry.name for entry in TABLE)])
        raise ValueError(f"Expected a judge from {', '.join(known)}, but got {name!r}; use one of these.")
    return JUDGES[kind](source, device)


def judge_identity(name: str) -> str:
    """Return what tells a judge from every other one, also after its files have changed."""
    from nrg_sampler.checkpoints import bundled_folder
    from nrg_sampler.files import fingerprint

    kind, _, source = name.partition(":")
    if kind == "pixel":
        return f"pixel {fingerprint(Path(source) if source else bundled_folder('judge'))}"
    if kind == "vlm":
        asked = hashlib.sha256("\n".join([*QUESTIONS.values(), SCALE]).encode()).hexdigest()
        return f"{name} {asked[:12]}"  # the weights behind a URL cannot be known from here
    if kind == KIND:
        return f"{name} {fingerprint(file_of(name))}"
    if kind not in JUDGES or (not source and find(kind) is not None):
        return f"{kind} {local_fingerprint(name)}"
    return f"{kind} {fingerprint(Path(source))}" if source else kind


def load_judges(names: Iterable[str], device: str = "cpu") -> dict[str, Judge]:
    """Make several, by the part of their name before the colon."""
    return {name.partition(":")[0]: load_judge(name, device) for name in names}
