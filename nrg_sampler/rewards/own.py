"""Judges and rewards of one's own by where they are: ``module:PACKAGE.MODULE:NAME`` or ``module:FILE.py:NAME``.

The whole file or package is run, with the rights of whoever names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.frame_scorer import Wanted

KIND = "module"


def is_own(name: str) -> bool:
    """Whether a name says where something of one's own is."""
    return name.partition(":")[0] == KIND


def load_own(name: str, what: str = "judge", device: str | torch.device | None = None) -> Any:
    """Import a judge or reward, and make it if it is a class that is called without arguments.

    Args:
        name: As ``"module:FILE.py:NAME"``.
        what: A judge or a reward, for an error.
        device: Where to move it, if it is a module.

    Raises:
        ValueError: If it cannot be imported or has no named axes.
    """
    source = name.partition(":")[2]
    found = _imported(source, what)
    own = found() if isinstance(found, type) else found
    axes = getattr(own, "axes", None)
    if not callable(own) or not axes or isinstance(axes, str):
        raise ValueError(
            f"Expected a {what} in {source!r}, a callable with named `axes`, but got {type(own).__name__} without "
            "them; give it a tuple such as `axes = ('VQ', 'MQ', 'TA')`."
        )
    if isinstance(own, nn.Module):
        own.to(device).eval()
    return own


def reads_latents(own: Any) -> bool:
    """Whether it is a reward of noisy latents, which is called with a noise level ``sigma``, and not of frames."""
    return "sigma" in _parameters(own)


def file_of(name: str) -> Path:
    """Return the file that is run."""
    place = name.partition(":")[2].rpartition(":")[0]
    return Path(place if place.endswith(".py") else str(importlib.import_module(place).__file__))


class OwnJudge(nn.Module):
    """A judge of frames of one's own, as a module whatever it is.

    Args:
        judge: Called with frames, and with ``prompts`` and ``fps`` if its parameters have these names; or with all
            three in this order. It may have the ``mean``, ``std`` and ``recommended_scale`` of a reward.
    """

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge = judge
        self.axes = tuple(judge.axes)
        self.mean, self.std = (getattr(judge, name, None) for name in ("mean", "std"))
        self.recommended_scale = getattr(judge, "recommended_scale", 1.0)
        named = Wanted.by(judge)
        needed = [item for item in _parameters(judge).values() if item.default is item.empty]
        self._in_turn = not (named.prompts or named.fps) and len(needed) == len(("frames", "prompts", "fps"))
        self.wanted = Wanted(True, True, True, True) if self._in_turn else named

    def forward(self, frames: Tensor, prompts: Sequence[str] | None = None, fps: float | None = None) -> Tensor:
        """Score clips ``(B, 3, T, H, W)`` in ``[0, 1]``; returns ``(B, axes)``."""
        given = {"prompts": prompts, "fps": fps}
        scores: Tensor
        if self._in_turn:
            scores = self.judge(frames, *given.values())
        else:
            scores = self.judge(frames, **{name: given[name] for name in given if getattr(self.wanted, name)})
        return scores


def _parameters(own: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(own.forward if isinstance(own, nn.Module) else own).parameters)


def _imported(source: str, what: str) -> Any:
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
            f"Expected a {what} of yours as module:PACKAGE.MODULE:NAME or module:FILE.py:NAME, but {source!r} cannot "
            f"be imported ({error}); correct the name, or install its package."
        ) from error
