"""The arguments that the denoiser was called with, read by a forward pre-hook.

Between two steps of a run others may call the same denoiser: a pipeline that shares it, a callback that evaluates it,
a run that failed before it reached its step. A call counts if it was made in this thread, in this run, and with the
latents of the step.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler.hosts.families import POSITIVE_FIRST, UNKNOWN, Family
from nrg_sampler.hosts.layouts import Call
from nrg_sampler.hosts.matching import saw_latents, saw_timestep
from nrg_sampler.rewards.base import Conditioning

KEPT = 16  # calls between two steps; a pipeline makes one for each prompt
WRAPPED = ("_orig_mod", "module", "get_base_model", "base_model", "model")  # torch.compile, DDP and FSDP, PEFT


class Arguments(dict[str, Any]):
    """Arguments of a denoiser by name; one that is missing is a ``ValueError`` that names the module.

    Args:
        values: The arguments.
        module: What was called.
    """

    def __init__(self, values: Call, module: Any = None) -> None:
        super().__init__(values)
        self._module = module

    def __missing__(self, name: str) -> Any:
        if self._module is None:
            called = "no denoiser was called with the latents of this step"
        else:
            called = f"{type(self._module).__name__} was called with {', '.join(self) or 'none that has a name'}"
        raise ValueError(
            f"Expected `{name}` among the arguments of the denoiser, but {called}; let the attached pipeline call its "
            "own denoiser with named arguments."
        )


class _Seen(NamedTuple):
    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    schedule: Any  # the scheduler's sigmas at that time, an object that every run makes anew


class DenoiserCalls:
    """Keep the calls of a denoiser since the last step and find the one that has the positive prompt.

    That is the first which belongs to the step. Values are compared in the first step of a run and wherever the number
    of calls differs from that step's, so that other steps wait for no device.

    Args:
        scheduler: Whose steps follow the calls.
        family: What is particular about the pipeline.
    """

    def __init__(self, scheduler: Any, family: Family = UNKNOWN) -> None:
        self._scheduler, self._family = scheduler, family
        self._seen: dict[int | None, deque[_Seen]] = {}  # by thread
        self._schedule: Any = None
        self._per_step = 0
        self._last: Arguments | None = None

    def see(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Serve as a forward pre-hook. Little is worked out here, where a compiler may look on."""
        thread, schedule = None, None
        if not torch.compiler.is_compiling():  # which would bake both into the graph
            thread, schedule = threading.get_ident(), self._scheduler.sigmas
        self._seen.setdefault(thread, deque(maxlen=KEPT)).append(_Seen(module, args, kwargs, schedule))

    def take(self, latents: Tensor | None = None, timestep: Any = None) -> Arguments:
        """Return the arguments of the call that belongs to a step, and wait for those of the next.

        Args:
            latents: Those of the step, as the scheduler is given them; ``None`` takes the first call of the run.
            timestep: Likewise.

        Returns:
            The arguments by name. A step without a call, as of a cache around the denoiser, has those of the step
            before.

        Raises:
            ValueError: If there were calls and none had these latents.
        """
        schedule = self._scheduler.sigmas
        seen = [*self._seen.pop(threading.get_ident(), ()), *self._seen.pop(None, ())]
        calls = [_named(call) for call in seen if call.schedule is None or call.schedule is schedule]
        begins = schedule is not self._schedule
        if begins:
            self._schedule, self._per_step, self._last = schedule, 0, None
        if latents is not None and (begins or len(calls) != self._per_step):
            calls = self._belonging(calls, latents, timestep)
        if begins:
            self._per_step = len(calls)
        if calls:
            self._last = calls[0]
        return self._last if self._last is not None else Arguments({})

    def _belonging(self, calls: list[Arguments], latents: Tensor, timestep: Any) -> list[Arguments]:
        verdicts = [saw_latents(call, self._family, latents) for call in calls]
        own = [call for call, verdict in zip(calls, verdicts, strict=True) if verdict is not False]
        if calls and not own:
            raise ValueError(
                f"Expected the denoiser to be called with the latents of the step, {tuple(latents.shape)}, but none "
                f"of its {len(calls)} calls had them; sample with the attached pipeline; let nothing else step its "
                "scheduler."
            )
        if self._per_step and len(own) > self._per_step:  # the same latents, at another time
            own = [call for call in own if saw_timestep(call, timestep)] or own
        return own


@contextmanager
def captured_calls(pipe: Any, family: Family) -> Iterator[DenoiserCalls]:
    """Watch the denoisers of ``pipe`` inside the ``with`` block."""
    calls = DenoiserCalls(pipe.scheduler, family)
    denoisers = [getattr(pipe, name, None) for name in family.denoisers]
    hooks = [
        module.register_forward_pre_hook(calls.see, with_kwargs=True) for module in denoisers if module is not None
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _named(call: _Seen) -> Arguments:
    """Name the arguments as the module inside all wrappers does; what no signature names is left out."""
    inner: Any = call.module
    while call.args and (wrapped := _wrapped(inner)) is not None:
        inner = wrapped
    parameters = list(inspect.signature(type(inner).forward).parameters.values())[1:]
    positional = [item.name for item in parameters if item.kind is item.POSITIONAL_OR_KEYWORD]
    named = dict(zip(positional, call.args, strict=False))
    return Arguments({**named, **call.kwargs}, call.module)


def _wrapped(module: Any) -> Any:
    """Return the module that a wrapper calls, ``None`` for one that names its own arguments."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    if all(item.kind is not item.VAR_POSITIONAL for item in parameters):
        return None
    parts = (getattr(module, name, None) for name in WRAPPED)
    inner = (part() if inspect.ismethod(part) else part for part in parts if part is not None)
    return next((part for part in inner if isinstance(part, torch.nn.Module)), None)


def prompts_of(call: Call, family: Family) -> tuple[Any, Any, Any]:
    """Return what a denoiser was given for prompts, their mask and their pooled vectors, as it was given them."""
    return call.get(family.prompt), call.get(family.prompt_mask or ""), call.get("pooled_projections")


def conditioning_of(call: Call, family: Family, batch: int) -> Conditioning:
    """Return the positive prompts of ``batch`` latents.

    Raises:
        ValueError: If the denoiser was called with another number of prompts than ``batch`` or twice that.
    """
    embeds, mask, pooled = prompts_of(call, family)
    if embeds is None and family.needs_prompt:
        embeds = call[family.prompt]
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
