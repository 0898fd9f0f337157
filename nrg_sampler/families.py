"""What differs between pipeline families, as data, and what is refused and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """Where a family of pipelines keeps what guidance needs.

    Args:
        name: The family's name.
        pipelines: Names of its diffusers classes; subclasses belong to it too.
        denoisers: Components that predict the velocity; those a pipeline lacks are passed over.
        prompt_argument: Argument of the denoiser that carries the prompt's features.
        prompt_position: Position of that argument, ``self`` not counted.
        latent_ndim: Number of dimensions of the latents at the scheduler: 5 is ``(B, C, T, H, W)``.
    """

    name: str
    pipelines: tuple[str, ...]
    denoisers: tuple[str, ...]
    prompt_argument: str = "encoder_hidden_states"
    prompt_position: int = 2
    latent_ndim: int = 5


WAN = Family(
    name="wan",
    pipelines=("WanPipeline", "WanVideoToVideoPipeline"),
    denoisers=("transformer", "transformer_2"),  # Wan 2.2 hands over from the first to the second
)
FAMILIES = (WAN,)


def family_of(pipeline_class: type) -> Family:
    """Return the family that a pipeline class belongs to.

    Raises:
        ValueError: If it belongs to none.
    """
    names = {base.__name__ for base in pipeline_class.__mro__}
    for family in FAMILIES:
        if names & set(family.pipelines):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.pipelines)
    raise ValueError(
        f"Expected one of the pipelines {known}, but got {pipeline_class.__name__}; "
        "use one of these, or call `guided_velocity` in a sampling loop of your own."
    )


def require_flow(scheduler: Any) -> None:
    """Refuse a scheduler that does not take the velocity of a rectified flow.

    Raises:
        ValueError: If it is made for another parametrisation, or runs from 0 to 1.
    """
    config = scheduler.config
    velocity = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas", False)
    if not (velocity or type(scheduler).__name__.startswith("FlowMatch")) or config.get("invert_sigmas", False):
        raise ValueError(
            f"Expected a rectified-flow scheduler, but got {_describe(scheduler)}; "
            "use a FlowMatch scheduler, or one with prediction_type='flow_prediction' and use_flow_sigmas=True."
        )


def _describe(scheduler: Any) -> str:
    settings = [
        f"{name}={scheduler.config[name]!r}"
        for name in ("prediction_type", "use_flow_sigmas", "invert_sigmas")
        if name in scheduler.config
    ]
    return type(scheduler).__name__ + (f" with {', '.join(settings)}" if settings else "")
