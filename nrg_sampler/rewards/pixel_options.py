"""How a reward on pixels computes, which changes what it costs and hardly what it says."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class PixelOptions(NamedTuple):
    """What :class:`nrg_sampler.rewards.pixel.PixelReward` is computed with.

    Args:
        offload: Whether the judge rests in the memory of the processor and comes to the device for each gradient.
        half: Whether judge and decoder compute in bfloat16, as ``torch.autocast`` does.
        tiny_vae: Folder or Hub id of an autoencoder that decodes for the gradient in place of the pipeline's.
    """

    offload: bool = False
    half: bool = False
    tiny_vae: str | None = None

    def __str__(self) -> str:
        given = {name: value for name, value in self._asdict().items() if value}
        return ", ".join(f"{name}={value!r}" for name, value in given.items())


def read_source(name: str, given: Any) -> str | None:
    """Return a folder or Hub id as it is stored; ``None`` and an empty text are none.

    Raises:
        ValueError: If it is neither a text nor a path.
    """
    if given is None or isinstance(given, (str, os.PathLike)):
        return (os.fspath(given) or None) if given is not None else None
    raise ValueError(f"Expected `{name}` to be a folder or a Hub id, but got {given!r}.")
