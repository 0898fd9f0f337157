"""The text of the prompts, from the call of the pipeline that is under way.

A denoiser sees features alone, and a reward may read with a text encoder of its own. So the pipeline's own call is
watched while guidance is attached. Calls are kept by thread, the innermost last, and each is forgotten when it ends,
also by an error: a step outside all of them has no prompt rather than another call's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nrg_sampler.checkpoints import read_sampling
from nrg_sampler.hosts.subclassing import GuidedCopy, guided_subclass
from nrg_sampler.rewards.base import RewardHooks

PER_PROMPT = ("num_videos_per_prompt", "num_images_per_prompt")
RATE = ("fps", "frame_rate")


@dataclass(frozen=True, eq=False)
class PromptedCall:
    """What a call of a pipeline says of its prompts.

    Args:
        prompts: The positive prompts in their order; ``None`` if they are not known as text.
        per_prompt: How many samples are made of each, which lie side by side in the batch.
        fps: Frames per second, where they are known.
        handed_over: Whether the prompts are not the call's own.
    """

    prompts: tuple[str, ...] | None = None
    per_prompt: int = 1
    fps: float | None = None
    handed_over: bool = False

    def of_samples(self, batch: int, needed: bool) -> tuple[str, ...] | None:
        """Return the prompt of each of ``batch`` samples; ``None`` if they are unknown.

        Raises:
            ValueError: If their number does not fit and they are ``needed`` or were handed over.
        """
        if self.prompts is None:
            return None
        if len(self.prompts) == 1:
            return self.prompts * batch
        # texts that were handed over may be one for each sample, whatever the call makes of a prompt
        if self.handed_over and len(self.prompts) == batch:
            return self.prompts
        if len(self.prompts) * self.per_prompt == batch:
            return tuple(text for text in self.prompts for _ in range(self.per_prompt))
        if needed or self.handed_over:
            raise ValueError(
                f"Expected one prompt for each of the {batch} samples, but got {len(self.prompts)} prompts for "
                f"{self.per_prompt} samples each; pass one text for each sample as `prompts`, or a single one for all."
            )
        return None


class PipelineCalls:
    """The calls of a pipeline that are under way.

    Args:
        reward: Whose ``needs_prompts`` says that a call without text is a mistake.
        prompts: One text for each prompt of every call, in place of the call's own; a text alone is one for all.
        fps: Frames per second, where a call does not state them.
        argument: How ``prompts`` are handed over, for an error.

    Raises:
        ValueError: If ``prompts`` are no texts.
    """

    def __init__(
        self,
        reward: Any,
        prompts: str | Sequence[str] | None = None,
        fps: float | None = None,
        argument: str = "`attach(..., prompts=[...])`, or `reward_prompts=[...]` to an `NRGFlowPipeline`",
    ) -> None:
        self._reader, self._argument = type(reward).__name__, argument
        self.needed = RewardHooks.of(reward).needs_prompts
        self._given = texts_of(prompts)
        if prompts is not None and not self._given:
            raise ValueError(f"Expected a text or a list of texts as prompts, but got {prompts!r}; pass {argument}.")
        self._fps = fps
        self._outside = PromptedCall(self._given, fps=fps, handed_over=self._given is not None)
        self._threads = threading.local()

    @property
    def current(self) -> PromptedCall:
        """The innermost call of this thread; outside of all, what was handed over.

        Raises:
            ValueError: If the reward reads text and there is none.
        """
        calls = vars(self._threads).get("calls")
        return calls[-1] if calls else self._checked(self._outside, "no call of the pipeline with a text was seen")

    @contextmanager
    def under_way(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Take the prompts from the arguments of a call inside the ``with`` block.

        Raises:
            ValueError: If the reward reads text and there is none, or the number of prompts that were handed over is
                another than that of the call.
        """
        call = self._checked(self._read(arguments), "the pipeline was called without a `prompt` of texts")
        calls = vars(self._threads).setdefault("calls", [])
        calls.append(call)
        try:
            yield
        finally:
            calls.pop()

    def _read(self, arguments: Mapping[str, Any]) -> PromptedCall:
        own = texts_of(_value(arguments, "prompt"))
        counts = [value for name in PER_PROMPT if isinstance(value := _value(arguments, name), int)]
        per_prompt = max([1, *counts])
        rates = [float(rate) for name in RATE if isinstance(rate := _value(arguments, name), (int, float))]
        fps = next((rate for rate in rates if rate > 0), self._fps)
        if self._given is None:
            return PromptedCall(own, per_prompt, fps)
        if own is not None and len(self._given) not in (len(own), len(own) * per_prompt):
            raise ValueError(
                f"Expected as many texts handed over as the pipeline is called with, {len(own)}, but got "
                f"{len(self._given)}; pass one for each prompt, or none to take those of the call."
            )
        return PromptedCall(self._given, per_prompt, fps, handed_over=True)

    def _checked(self, call: PromptedCall, came: str) -> PromptedCall:
        if self.needed and call.prompts is None:
            raise ValueError(
                f"Expected the text of the prompts for {self._reader}, which reads it, but {came}; pass "
                f"{self._argument}, one text for each prompt."
            )
        return call


class WatchedPipeline(GuidedCopy):
    """A pipeline whose calls are seen; of the class and the name that it has otherwise."""

    _guiding = ("_calls_under_way",)

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        return {"__init__": base.__init__, "__call__": _watched(base.__call__)}


@contextmanager
def watched(pipe: Any, calls: PipelineCalls) -> Iterator[None]:
    """Let ``calls`` see those of ``pipe`` inside the ``with`` block; what cannot be called is left alone."""
    plain: Any = type(pipe)
    if callable(pipe) and hasattr(pipe, "__dict__"):
        with contextlib.suppress(TypeError):  # an unusual class of which no other can be made
            pipe.__class__ = guided_subclass(WatchedPipeline, plain)
    watching = type(pipe)
    if watching is plain:
        yield
        return
    vars(pipe)["_calls_under_way"] = calls
    try:
        yield
    finally:
        del vars(pipe)["_calls_under_way"]
        if type(pipe) is watching:  # not what somebody made of it in the block
            pipe.__class__ = plain


@contextmanager
def called(pipe: Any, arguments: Mapping[str, Any] | None) -> Iterator[None]:
    """Let those who watch ``pipe`` see a call inside the ``with`` block."""
    calls = vars(pipe).get("_calls_under_way")
    with contextlib.nullcontext() if calls is None or arguments is None else calls.under_way(arguments):
        yield


def frame_rate(pipe: Any) -> float | None:
    """Return the rate in the pipeline's ``sampling.json``, if it states one."""
    settings = getattr(pipe, "_sampling", None)
    folder = str(getattr(pipe, "name_or_path", None) or "")
    if not settings and os.path.isdir(folder):
        with contextlib.suppress(ValueError):  # the rate may be unknown, and the file another program's
            settings = read_sampling(folder)
    rate = (settings or {}).get("fps")
    return float(rate) if isinstance(rate, (int, float)) and rate > 0 else None


def _watched(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        with called(self, arguments_of(signature, self, *args, **kwargs)):
            return original(self, *args, **kwargs)

    # what diffusers has there, without its `torch.no_grad`, for those who look for that
    __call__.__wrapped__ = getattr(original, "__wrapped__", original)
    __call__.__signature__ = signature  # type: ignore[attr-defined]
    return __call__


def arguments_of(signature: inspect.Signature, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
    """Return the arguments of a call by name, defaults included; ``None`` if it does not fit the signature."""
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError:  # for the call itself to say
        return None
    bound.apply_defaults()
    named = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name)
    return named


def _value(arguments: Mapping[str, Any], name: str) -> Any:
    """Return an argument, or what the state of a modular pipeline has of that name."""
    value = arguments.get(name)
    state: Any = arguments.get("state")
    return state.get(name) if value is None and hasattr(state, "get") else value


def texts_of(prompt: Any) -> tuple[str, ...] | None:
    """Return prompts as texts; ``None`` if they are none."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(prompts, (list, tuple)) and prompts and all(isinstance(text, str) for text in prompts):
        return tuple(prompts)
    return None
