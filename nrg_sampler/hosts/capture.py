"""The arguments that the denoiser was called with, read by a forward pre-hook."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.hosts.families import POSITIVE_FIRST, Family
from nrg_sampler.hosts.layouts import Call
from nrg_sampler.rewards.base import Conditioning


class DenoiserCalls:
    """Keep the first call of a denoiser since the last step: it is the one that has the positive prompt."""

    def __init__(self) -> None:
        self._first: tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]] | None = None

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook. Nothing is worked out here, where a compiler may look on."""
        if self._first is None:
            self._first = (module, args, kwargs)

    def take(self) -> Call:
        """Return that call's arguments by name, empty if there was none, and wait for the next one."""
        if self._first is None:
            return {}
        (module, args, kwargs), self._first = self._first, None
        original = getattr(module, "_orig_mod", module)  # of a compiled module
        return inspect.signature(type(original).forward).bind(original, *args, **kwargs).arguments


@contextmanager
def captured_calls(pipe: Any, family: Family) -> Iterator[DenoiserCalls]:
    """Watch the denoisers of ``pipe`` inside the ``with`` block."""
    calls = DenoiserCalls()
    denoisers = [getattr(pipe, name, None) for name in family.denoisers]
    hooks = [
        module.register_forward_pre_hook(calls.see, with_kwargs=True) for module in denoisers if module is not None
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def prompts_of(call: Call, family: Family) -> tuple[Any, Any, Any]:
    """Return what a denoiser was given for prompts, their mask and their pooled vectors, as it was given them."""
    return call.get(family.prompt), call.get(family.prompt_mask or ""), call.get("pooled_projections")


def conditioning_of(call: Call, family: Family, batch: int) -> Conditioning:
    """Return the positive prompts of ``batch`` latents.

    Raises:
        ValueError: If the denoiser was called with another number of prompts than ``batch`` or twice that.
    """
    embeds, mask, pooled = prompts_of(call, family)
    if isinstance(embeds, (list, tuple)):  # one (L, D) per prompt, of different lengths
        mask = _padded([torch.ones_like(prompt[:, 0]) for prompt in embeds])
        embeds = _padded(list(embeds))
    if embeds is None:
        return Conditioning()
    if mask is not None:
        mask = mask[:, : embeds.shape[1]]  # further tokens are those of the picture
    if family.cfg == POSITIVE_FIRST:
        embeds, mask, pooled = embeds[:batch], *(None if part is None else part[:batch] for part in (mask, pooled))
    return Conditioning(embeds, mask, pooled=pooled).for_batch(batch)


def _padded(tensors: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
