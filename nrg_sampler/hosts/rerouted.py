"""Let the calls of one pipeline go through a function for the duration of a ``with`` block."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nrg_sampler.hosts.subclassing import GuidedCopy, guided_subclass


class ReroutedPipeline(GuidedCopy):
    """A pipeline whose calls go through a function; of the class and the name that it has otherwise."""

    _guiding = ("_call_through",)

    @classmethod
    def _members(cls, base: Any) -> dict[str, Any]:
        return {"__init__": base.__init__, "__call__": _rerouted(base.__call__)}


def _rerouted(original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        through = vars(self).get("_call_through")
        if through is None:
            return original(self, *args, **kwargs)
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        own, *_ = signature.parameters
        del given[own]
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        return through(functools.partial(original, self), given)

    __call__.__signature__ = signature  # type: ignore[attr-defined]
    return __call__


@contextmanager
def rerouted(pipe: Any, through: Callable[..., Any]) -> Iterator[None]:
    """Let calls of ``pipe`` go through another function inside the ``with`` block.

    Args:
        pipe: The pipeline.
        through: ``(call, arguments)`` returns what the caller gets; ``call(**arguments)`` is the pipeline's own.

    Raises:
        ValueError: If its calls go through another one already.
    """
    plain: Any = type(pipe)
    if "_call_through" in vars(pipe):
        raise ValueError("Expected a pipeline that does not look ahead yet, but it does; leave the other block first.")
    pipe.__class__ = guided_subclass(ReroutedPipeline, plain)
    changed = type(pipe)
    vars(pipe)["_call_through"] = through
    try:
        yield
    finally:
        del vars(pipe)["_call_through"]
        if type(pipe) is changed:  # not what somebody made of it in the block
            pipe.__class__ = plain
