"""Who grades: judges, none of which may be the reward that guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from nrg_sampler.shapes.oracle import grade
from nrg_sampler.shapes.scenes import Prompt


class Judge(Protocol):
    """Score finished clips of the shapes world on VQ, MQ and TA, higher is better."""

    def __call__(self, clips: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Return scores, shape ``(B, 3)``, of clips ``(B, 3, T, H, W)`` in ``[0, 1]``."""
        ...


def oracle() -> Judge:
    """Return the oracle: measurements of the pixels, no network."""
    return grade


# A judge is made when it is first asked for; to add one, name it here.
JUDGES: dict[str, Callable[[], Judge]] = {"oracle": oracle}


def panel(names: Sequence[str]) -> dict[str, Judge]:
    """Make the named judges.

    Raises:
        ValueError: If one is unknown.
    """
    unknown = [name for name in names if name not in JUDGES]
    if unknown or not names:
        raise ValueError(f"Expected judges from {', '.join(JUDGES)}, but got {', '.join(unknown) or 'none'}.")
    return {name: JUDGES[name]() for name in dict.fromkeys(names)}
