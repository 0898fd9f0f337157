"""See what a pipeline hands to its scheduler as latents, velocity and noise level of a rectified flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nrg_sampler.flow import PURE_NOISE
from nrg_sampler.hosts.conventions import STRAIGHT, path_of
from nrg_sampler.hosts.families import Family
from nrg_sampler.hosts.layouts import IMAGE, VIDEO, Call, Layout


@dataclass(frozen=True)
class SeenStep:
    """One step of a rectified flow.

    Args:
        latents: Noisy latents, shape ``(B, C, T, H, W)``.
        velocity: Of the same shape.
        sigma: Noise level, 1 is pure noise.
        index: Number of the denoising step, from 0.
        count: Number of denoising steps.
    """

    latents: Tensor
    velocity: Tensor
    sigma: float
    index: int
    count: int


class StepView:
    """Translate between a pipeline's own layout and path, and those of a rectified flow.

    Args:
        scheduler: The scheduler whose steps these are.
        family: What is particular about the pipeline.
    """

    def __init__(self, scheduler: Any, family: Family) -> None:
        self._scheduler, self._family = scheduler, family
        self._schedule: Tensor | None = None
        self._path = STRAIGHT
        self._levels: list[float] = []
        self._first = 0

    def begins(self, call: Call, latents: Tensor, tokenwise: bool) -> bool:
        """Return whether a run begins with this step, and look at its schedule and sizes if so.

        Raises:
            ValueError: If the schedule is not that of a flow, or the latents lie in another way.
        """
        if self._scheduler.sigmas is self._schedule:
            return False
        self._schedule, self._first = self._scheduler.sigmas, self._scheduler.step_index
        self._levels = self._schedule.tolist()  # once a run, as the sizes below, so that no step waits for the device
        self._path = path_of(self._scheduler, self._family.exploding, tokenwise)
        if max(self._levels) > self._path.highest + 1 - PURE_NOISE:
            raise ValueError(
                f"Expected sigmas between 0 and 1, but the scheduler starts at {max(self._levels):g}; "
                "use a rectified-flow schedule."
            )
        self._views = layout_of(self._family, latents).views(call, latents)
        return True

    def seen(self, output: Tensor, latents: Tensor) -> SeenStep:
        """Return the step that ``output`` and ``latents`` stand for."""
        place, order = self._scheduler.step_index, self._scheduler.order  # Heun calls twice per denoising step
        level, path, views = self._levels[place], self._path, self._views
        own = views.unpack(latents)
        return SeenStep(
            path.latents(own, level),
            path.velocity(views.unpack(output), own, level),
            path.sigma(level),
            (place - self._first) // order,
            -(-(len(self._scheduler.timesteps) - self._first) // order),
        )

    def output(self, velocity: Tensor, output: Tensor, latents: Tensor) -> Tensor:
        """Return the output that stands for another velocity in this step."""
        level = self._levels[self._scheduler.step_index]
        return self._views.pack(self._path.output(velocity, self._views.unpack(latents), level), output)


def layout_of(family: Family, latents: Tensor) -> Layout:
    """Return how the latents of a pipeline lie.

    Raises:
        ValueError: If these do not lie so.
    """
    layout = family.layout or (IMAGE if latents.ndim == IMAGE.ndim else VIDEO)
    if latents.ndim != layout.ndim:
        raise ValueError(
            f"Expected latents of shape {layout.shape} at the scheduler, but got {tuple(latents.shape)}; "
            "call `guided_velocity` in a sampling loop of your own for another layout."
        )
    return layout
