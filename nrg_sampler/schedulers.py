"""The flow schedulers of diffusers by short names, so that a manifest and a menu can name one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# name -> class in diffusers; the first is what Wan models are trained with, the second what they come with
SCHEDULERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}
HISTORY = ("model_outputs", "last_sample", "prev_derivative", "sample")  # of multistep and two-stage solvers


def make_scheduler(name: str, model_scheduler: Any) -> Any:
    """Return a scheduler with the noise schedule of the model's own.

    Args:
        name: One of ``SCHEDULERS``.
        model_scheduler: The scheduler that came with the model; it stays as it is.

    Raises:
        ValueError: If the name is unknown.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"Expected a scheduler from {', '.join(SCHEDULERS)}, but got {name!r}.")
    shift = model_scheduler.config.get("shift", model_scheduler.config.get("flow_shift", 1.0))
    scheduler: Any = getattr(diffusers, SCHEDULERS[name])
    if name in ("euler", "heun"):
        return scheduler(shift=shift)
    return scheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def thin_history(scheduler: Any, rows: Tensor, batch: int) -> None:
    """Keep ``rows`` of a batch in what a multistep solver remembers of its last steps."""

    def thinned(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == batch:
            return value[rows.to(value.device)]
        return [thinned(item) for item in value] if isinstance(value, list) else value

    for name in HISTORY:
        if hasattr(scheduler, name):
            setattr(scheduler, name, thinned(getattr(scheduler, name)))
