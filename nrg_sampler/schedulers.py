"""The flow schedulers of diffusers by short names, so that a manifest and a menu can name one."""

from __future__ import annotations

from typing import Any

# name -> class in diffusers; the first is what Wan models are trained with, the second what they come with
SCHEDULERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}


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
