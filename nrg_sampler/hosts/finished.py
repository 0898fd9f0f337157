"""The finished latents of a pipeline's call, whatever the pipeline makes of them, as a reward reads them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from nrg_sampler.hosts.capture import captured_calls, conditioning_of
from nrg_sampler.hosts.families import family_of
from nrg_sampler.hosts.layouts import Call
from nrg_sampler.hosts.step_view import layout_of
from nrg_sampler.hosts.stepping import replaced_step
from nrg_sampler.rewards.base import Conditioning


class Finished(NamedTuple):
    """What a call left behind.

    Args:
        latents: Clean latents, shape ``(B, C, T, H, W)``, with the frame that was given, if one was.
        conditioning: The positive prompts, one row per latent.
    """

    latents: Tensor
    conditioning: Conditioning


class LastStep:
    """Keep what the last step of the pipeline's scheduler had and made."""

    def __init__(self, pipe: Any) -> None:
        self._family = family_of(type(pipe))
        self._seen: tuple[Call, Tensor, Tensor] | None = None

    def see(self, call: Call, latents: Tensor, result: Any) -> None:
        """Take the arguments of the denoiser, the latents before the step and what the step returned."""
        self._seen = call, latents, result[0] if isinstance(result, tuple) else result.prev_sample

    def read(self) -> Finished:
        """Return the latents of the step that was seen last.

        Raises:
            ValueError: If none was seen.
        """
        if self._seen is None:
            raise ValueError(
                "Expected the pipeline to step its scheduler, but no step was seen; sample with the pipeline itself."
            )
        call, before, after = self._seen
        views = layout_of(self._family, before).views(call, before)
        video, given = views.unpack(after), self._family.given
        frame = given.frame(call, video) if given else None
        if given is not None and frame is not None:
            video = given.completed(video, frame)
        return Finished(video.float(), conditioning_of(call, self._family, len(before)))


@contextmanager
def last_step(pipe: Any) -> Iterator[LastStep]:
    """Watch the steps of ``pipe`` inside the ``with`` block; guidance may be attached around it."""
    last, scheduler = LastStep(pipe), pipe.scheduler
    with captured_calls(pipe, family_of(type(pipe))) as calls:

        def watching(original: Any) -> Any:
            @functools.wraps(original)
            def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
                result = original(self, model_output, timestep, sample, *args, **kwargs)
                if self is scheduler:
                    last.see(calls.take(sample, timestep), sample, result)
                return result

            return step

        with replaced_step(scheduler, watching, beside=True):
            yield last
