"""The direction in which the reward pulls, and its memory from step to step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Direction(NamedTuple):
    """Where the reward wants the latents to go.

    Args:
        value: Combined gradient, shape of the latents.
        raw: Raw reward there, shape ``(B, axes)``.
        floored: Whether a floor changed it, shape ``(B,)``.
        proposed: Weights that the reward proposed, shape ``(B, axes)``; ``None`` if they were given.
    """

    value: Tensor
    raw: Tensor
    floored: Tensor
    proposed: Tensor | None = None


@dataclass
class DirectionMemory:
    """Hold the last direction for the steps that reuse it, and whose samples they are; one per sampling run.

    Args:
        last: The direction, or ``None`` before the first.
        prompts: The text of each sample of the batch, where a host knows it.
    """

    last: Direction | None = field(default=None, repr=False)
    prompts: tuple[str, ...] | None = field(default=None, repr=False)

    def recall(self, latents: Tensor) -> Direction | None:
        """Return the last direction if it is of such latents."""
        return self.last if self.last is not None and self.last.value.shape == latents.shape else None

    def keep(self, rows: Tensor) -> None:
        """Keep the samples ``rows`` of the batch, in this order, as a sampling loop does that gives some up."""
        if self.prompts is not None:
            self.prompts = tuple(self.prompts[row] for row in torch.arange(len(self.prompts))[rows.cpu()].tolist())
        if self.last is not None:
            value, raw, floored = (part[rows.to(part.device)] for part in self.last[:3])
            proposed = self.last.proposed
            self.last = Direction(
                value, raw, floored, None if proposed is None else proposed[rows.to(proposed.device)]
            )
