"""What a visitor asks for, checked here whatever the page's sliders allow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.recipe import Recipe
from nrg_sampler.rewards import RewardWeights
from nrg_sampler.schedulers import SCHEDULERS

PROMPT_LENGTH = 500  # characters
STEPS = (1, 100)
CFG = (0.0, 20.0)
SEED = (0, 2**32 - 1)
STRENGTH = (-10.0, 10.0)  # a negative one pushes away from the reward
WEIGHT = 10.0
OWN_SCHEDULER = "model's own"


@dataclass(frozen=True)
class Control:
    """How the page shows a field of ``RewardGuidance``: a slider, or a number that may be left empty.

    Args:
        label: Its name on the page.
        info: One line about it.
        low: Smallest value.
        high: Largest value.
        step: Distance of the slider's stops; 1 makes it a whole number.
        optional: Whether an empty field means no limit.
    """

    label: str
    info: str
    low: float
    high: float
    step: float
    optional: bool = False

    def read(self, value: Any) -> Any:
        """Return the value of the field that somebody sent.

        Raises:
            ValueError: If it is not a number, or not a whole one where it has to be.
        """
        if value is None and self.optional:
            return None
        return (_whole if self.step == 1 else _number)(self.label.lower(), value)


# Fields of RewardGuidance, by their names there. To show one more, add a line.
CONTROLS = {
    "start": Control("Window start", "Guide from this fraction of the steps on.", 0.0, 1.0, 0.05),
    "stop": Control("Window stop", "Stop guiding at this fraction.", 0.0, 1.0, 0.05),
    "max_coefficient": Control("Clamp", "Limit of σ/(1-σ); empty for none.", 0.01, 1000.0, 0.1, optional=True),
    "max_push": Control("Cap", "Limit of the push, in velocities; empty for none.", 0.01, 10.0, 0.05, optional=True),
    "damping": Control("Damping", "Trust the reward less in noise: power of 1-σ.", 0.0, 4.0, 0.25),
    "every": Control("Every n-th step", "Guide only each n-th step.", 1, 10, 1),
}


@dataclass(frozen=True)
class Settings:
    """One request.

    Args:
        prompt: What the video shows.
        guidance: How the reward acts.
        steps: Denoising steps.
        cfg: Classifier-free guidance.
        seed: Of the noise.
        scheduler: One of :data:`nrg_sampler.schedulers.SCHEDULERS`, or ``None`` for the model's own.
        model: Name of a model that the server offers.

    Raises:
        ValueError: If a value is out of range.
    """

    prompt: str
    guidance: RewardGuidance
    steps: int
    cfg: float
    seed: int
    scheduler: str | None
    model: str

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError("Expected a prompt, but got an empty text; say what the video shows.")
        if len(self.prompt) > PROMPT_LENGTH:
            raise ValueError(
                f"Expected a prompt of at most {PROMPT_LENGTH} characters, but got {len(self.prompt)}; shorten it."
            )
        _within("steps", self.steps, STEPS)
        _within("CFG", self.cfg, CFG)
        _within("seed", self.seed, SEED)
        _within("strength", self.guidance.scale, STRENGTH)
        for name, control in CONTROLS.items():
            value = getattr(self.guidance, name)
            if value is not None:
                _within(control.label.lower(), value, (control.low, control.high))
        for weight in RewardWeights.parse(self.guidance.weights).values or ():
            _within("every weight", weight, (0.0, WEIGHT))
        if self.scheduler not in (None, *SCHEDULERS):
            raise ValueError(f"Expected a scheduler from {', '.join(SCHEDULERS)}, but got {self.scheduler!r}.")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """Read what a page or a program sent; the inverse of ``values``.

        Args:
            values: By name: ``prompt``, ``weights`` (text such as ``"1:1:1"``), ``strength``, ``steps``, ``cfg``,
                ``seed``, ``scheduler``, ``model`` and any of :data:`CONTROLS`.

        Raises:
            ValueError: If a value is missing, of another kind or out of range.
        """
        guidance = RewardGuidance(
            weights=_weights(values["weights"]),
            scale=_number("strength", values["strength"]),
            **{name: CONTROLS[name].read(values[name]) for name in CONTROLS if name in values},
        )
        scheduler = values.get("scheduler")
        return cls(
            prompt=str(values["prompt"]),
            guidance=guidance,
            steps=_whole("steps", values["steps"]),
            cfg=_number("CFG", values["cfg"]),
            seed=_whole("seed", values["seed"]),
            scheduler=None if scheduler in (None, "", OWN_SCHEDULER) else str(scheduler),
            model=str(values["model"]),
        )

    def values(self) -> dict[str, Any]:
        """Return the values by their names on the page."""
        flat = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "guidance"}
        controls = {name: getattr(self.guidance, name) for name in CONTROLS}
        weights = str(RewardWeights.parse(self.guidance.weights))
        return {**flat, **controls, "weights": weights, "strength": self.guidance.scale}

    def with_weights(self, weights: str) -> Settings:
        """Return the same request with other weights."""
        return replace(self, guidance=replace(self.guidance, weights=weights))

    def with_seed(self, seed: int) -> Settings:
        """Return the same request with another seed."""
        return replace(self, seed=seed)

    def recipe(self, model: str, reward: str | None, device: str, dtype: str) -> Recipe:
        """Return what is sampled; arguments as in :class:`nrg_sampler.recipe.Recipe`."""
        return Recipe(
            prompt=self.prompt,
            guidance=self.guidance,
            sampling={"num_inference_steps": self.steps, "guidance_scale": self.cfg},
            model=model,
            reward=reward,
            device=device,
            dtype=dtype,
            fps=None,
            scheduler=self.scheduler,
        )


def _weights(weights: Any) -> RewardWeights:
    if not isinstance(weights, str):
        raise ValueError(f"Expected weights as text such as '1:1:1', but got {weights!r}.")
    return RewardWeights.parse(weights)


def _within(name: str, value: float, limits: tuple[float, float]) -> None:
    low, high = limits
    if not low <= value <= high:
        raise ValueError(f"Expected {name} between {low:g} and {high:.10g}, but got {value:.10g}.")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"Expected a number for {name}, but got {value!r}.")
    return float(value)


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise ValueError(f"Expected a whole number for {name}, but got {value!r}.")
    return int(number)
