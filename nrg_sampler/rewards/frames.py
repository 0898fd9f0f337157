"""Which latent frames of a clip a reward looks at in one step."""

from __future__ import annotations

import math
from typing import Any

import torch

ALL = "all"
WORDS = (ALL, "first", "middle", "random", "turns")
EVERY = "every:"
GOLDEN = (math.sqrt(5) - 1) / 2


def read_frames(name: str, given: Any) -> str | None:
    """Return a choice of frames as it is stored; ``None`` stays that.

    Args:
        name: What to call it in an error.
        given: ``"all"``, ``"first"``, ``"middle"``, ``"every:N"`` with the first of them in turns, ``"random"``, one
            drawn for each step, or ``"turns"``, one after the other from step to step.

    Raises:
        ValueError: If it is none of these.
    """
    if given is None:
        return None
    text = given.strip().lower() if isinstance(given, str) else ""
    stride = text.removeprefix(EVERY)
    if text in WORDS:
        return text
    if text.startswith(EVERY) and stride.isdecimal() and int(stride) >= 1:
        return ALL if int(stride) == 1 else f"{EVERY}{int(stride)}"
    raise ValueError(f"Expected `{name}` to be {', '.join(WORDS)} or {EVERY}N, but got {given!r}.")


def chosen_frames(frames: str, count: int, turn: int) -> tuple[range, int]:
    """Choose the latent frames whose turn it is.

    Args:
        frames: As :func:`read_frames` returns it.
        count: How many latent frames there are.
        turn: How many choices were made before.

    Returns:
        The frames, and the turn of what else takes turns once all of them had theirs.
    """
    if frames.startswith(EVERY):
        stride = int(frames.removeprefix(EVERY))
        turn, first = divmod(turn, min(stride, count))
        return range(first, count, stride), turn
    if frames == "turns":
        turn, place = divmod(turn, count)
        return _single(place * _spread(count) % count), turn
    if frames == "random":  # the same in every run, whatever else is drawn
        generator = torch.Generator().manual_seed(turn)
        return _single(int(torch.randint(count, (), generator=generator))), turn
    single = {"first": 0, "middle": count // 2}
    return (_single(single[frames]) if frames in single else range(count)), turn


def _single(place: int) -> range:
    return range(place, place + 1)


def _spread(count: int) -> int:
    """How far apart the frames of two turns are: every frame comes once, and a few turns are spread over the clip."""
    wanted = GOLDEN * count
    return min((step for step in range(1, count + 1) if math.gcd(step, count) == 1), key=lambda s: abs(s - wanted))
