"""What a judge of frames is called with: frames alone, or the text of the prompts and the frame rate too."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nrg_sampler.rewards.base import Conditioning

FrameScorer = Callable[..., Tensor]  # frames (B, 3, T, H, W) in [0, 1], and `prompts`, `fps`, to numbers (B, axes)


@dataclass(frozen=True)
class Wanted:
    """What a judge takes besides frames, by the names of its parameters.

    Args:
        prompts: Whether it takes one text for each clip.
        fps: Whether it takes the frames per second.
        needs_prompts: Whether it cannot be called without prompts.
        needs_fps: Whether it cannot be called without the rate, which may then be ``None``.
    """

    prompts: bool = False
    fps: bool = False
    needs_prompts: bool = False
    needs_fps: bool = False

    @classmethod
    def by(cls, judge: Any) -> Wanted:
        """Read the signature of a judge, unless it has its answer in ``wanted``; without one it gets frames alone."""
        if isinstance(wanted := getattr(judge, "wanted", None), cls):
            return wanted
        try:
            parameters = inspect.signature(judge.forward if isinstance(judge, nn.Module) else judge).parameters
        except (TypeError, ValueError):
            return cls()
        named = {
            name: item
            for name, item in parameters.items()
            if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)
        }
        needed = {name for name, item in named.items() if item.default is item.empty}
        return cls("prompts" in named, "fps" in named, "prompts" in needed, "fps" in needed)

    def arguments(self, batch: int, prompts: Sequence[str] | None, fps: float | None) -> dict[str, Any]:
        """Return what to call the judge with besides ``batch`` clips.

        Raises:
            ValueError: If prompts are missing, or neither one for each clip nor a single one.
        """
        named: dict[str, Any] = {}
        if self.needs_prompts and prompts is None:
            raise ValueError(
                "Expected prompts for a judge that reads them, but got none; guide with `attach`, or pass "
                "`Conditioning(prompts=...)` or `score_frames(frames, prompts)`."
            )
        if self.prompts and prompts is not None:
            named["prompts"] = _for_batch(prompts, batch)
        if self.needs_fps or (self.fps and fps is not None):
            named["fps"] = fps
        return named


def _for_batch(prompts: Sequence[str], batch: int) -> list[str]:
    given: Any = prompts  # a text alone is refused there
    return list(Conditioning(prompts=given).for_batch(batch).prompts or ())
