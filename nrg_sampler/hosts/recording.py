"""Record a run as it is sampled: latents and velocity of each step, as a rectified flow has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.hosts.capture import captured_calls
from nrg_sampler.hosts.families import family_of, require_flow
from nrg_sampler.hosts.step_view import StepView
from nrg_sampler.hosts.stepping import replaced_step
from nrg_sampler.hosts.steps import guided_step


class Recording:
    """The steps of the run that was sampled last, on the CPU in half precision.

    Args:
        sigmas: Noise level of each step, 1 is pure noise.
    """

    def __init__(self) -> None:
        self.sigmas: list[float] = []
        self._latents: list[Tensor] = []
        self._velocities: list[Tensor] = []

    def clear(self) -> None:
        """Forget the run before."""
        for kept in (self.sigmas, self._latents, self._velocities):
            kept.clear()

    def keep(self, latents: Tensor, velocity: Tensor, sigma: float) -> None:
        """Keep a step."""
        self.sigmas.append(sigma)
        self._latents.append(latents.detach().to("cpu", torch.float16, copy=True))
        self._velocities.append(velocity.detach().to("cpu", torch.float16, copy=True))

    def nearest(self, levels: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Return the steps whose noise levels are nearest to those wanted.

        Args:
            levels: Noise levels, each of another step.

        Returns:
            The steps' noise levels, shape ``(K,)``, and their latents and velocities, shape
            ``(B, K, 2, C, T, H, W)``.

        Raises:
            ValueError: If nothing was recorded, or two levels are nearest to one step.
        """
        if not self.sigmas:
            raise ValueError("Expected steps of a pipeline, but none were recorded; sample with the pipeline itself.")
        own = torch.tensor(self.sigmas)
        places = (own[:, None] - torch.tensor(levels)).abs().argmin(dim=0).tolist()
        if len(set(places)) < len(places):
            raise ValueError(
                f"Expected noise levels of {len(levels)} steps, but the {len(own)} steps of this run have sigmas "
                f"{', '.join(f'{sigma:.2f}' for sigma in self.sigmas)}; ask for fewer levels, or sample in more steps."
            )
        steps = [torch.stack([self._latents[place], self._velocities[place]], dim=1) for place in places]
        return own[places], torch.stack(steps, dim=1)


@contextmanager
def recorded_steps(pipe: Any) -> Iterator[Recording]:
    """Record what ``pipe`` samples inside the ``with`` block, without changing it.

    Args:
        pipe: A diffusers pipeline that samples a rectified flow; guidance may be attached around or inside.

    Raises:
        ValueError: If the scheduler is not that of a flow.
    """
    require_flow(pipe.scheduler)
    family, scheduler, recording = family_of(type(pipe)), pipe.scheduler, Recording()
    view = StepView(scheduler, family)
    with captured_calls(pipe, family) as calls:

        def record(output: Tensor, latents: Tensor, timestep: Any, tokenwise: bool) -> Tensor:
            if view.begins(calls.take(latents, timestep), latents, tokenwise):
                recording.clear()
            seen = view.seen(output, latents)
            recording.keep(seen.latents, seen.velocity, seen.sigma)
            return output

        with replaced_step(
            scheduler,
            lambda original: guided_step(original, lambda own: record if own is scheduler else None),
            beside=True,
        ):
            yield recording
