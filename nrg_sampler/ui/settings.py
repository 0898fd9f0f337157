"""What a visitor asks for, checked here whatever the page's sliders allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nrg_sampler.entries import UNICODE, require
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards import RewardWeights
from nrg_sampler.runs.recipe import Recipe
from nrg_sampler.schedulers import SCHEDULERS
from nrg_sampler.ui.controls import CONTROLS, real, whole, within

PROMPT_LENGTH = 500  # characters
STEPS = (1, 100)
CFG = (0.0, 20.0)
SEED = (0, 2**32 - 1)
STRENGTH = (-1000.0, 1000.0)  # the paper's is 100 of an uncalibrated reward; a negative one pushes away
WEIGHT = 10.0
OWN_SCHEDULER = "model's own"
NAMES = ("prompt", "weights", "strength", "steps", "cfg", "seed", "scheduler", "model")


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
        require({"prompt": self.prompt}, {"prompt": UNICODE})
        if len(self.prompt) > PROMPT_LENGTH:
            raise ValueError(
                f"Expected a prompt of at most {PROMPT_LENGTH} characters, but got {len(self.prompt)}; shorten it."
            )
        within("steps", self.steps, STEPS)
        within("CFG", self.cfg, CFG)
        within("seed", self.seed, SEED)
        within("strength", self.guidance.scale, STRENGTH)
        weights = self.guidance.axis_weights
        if weights.auto:
            raise ValueError(
                "Expected weights as numbers, but got 'auto'; the page shows what is proposed to start from."
            )
        for weight in weights.values or ():
            within("every weight", weight, (0.0, WEIGHT))
        if self.scheduler not in (None, *SCHEDULERS):
            raise ValueError(f"Expected a scheduler from {', '.join(SCHEDULERS)}, but got {self.scheduler!r}.")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """Read what a page or a program sent; the inverse of ``values``.

        Args:
            values: By name: ``prompt``, ``weights`` (text such as ``"1:1:1"``), ``strength``, ``steps``, ``cfg``,
                ``seed``, ``scheduler``, ``model`` and any of :data:`CONTROLS`.

        Raises:
            ValueError: If a value is missing, unknown, of another kind or out of range.
        """
        unknown = sorted(values.keys() - {*NAMES, *CONTROLS} - _left_alone(values))
        if unknown:
            raise ValueError(f"Expected settings from {', '.join(CONTROLS)}, scheduler, but got {', '.join(unknown)}.")
        chosen: dict[str, Any] = {
            name: control.read(values[name]) for name, control in CONTROLS.items() if name in values
        }
        guidance = RewardGuidance(
            weights=_weights(values["weights"]), scale=real("strength", values["strength"]), **chosen
        )
        scheduler = values.get("scheduler")
        return cls(
            prompt=str(values["prompt"]),
            guidance=guidance,
            steps=whole("steps", values["steps"]),
            cfg=real("CFG", values["cfg"]),
            seed=whole("seed", values["seed"]),
            scheduler=None if scheduler in (None, "", OWN_SCHEDULER) else str(scheduler),
            model=str(values["model"]),
        )

    def values(self) -> dict[str, Any]:
        """Return the values by their names on the page."""
        flat = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "guidance"}
        controls = {name: control.show(getattr(self.guidance, name)) for name, control in CONTROLS.items()}
        weights = str(self.guidance.axis_weights)
        return {**flat, **controls, "weights": weights, "strength": self.guidance.scale}

    def with_weights(self, weights: str) -> Settings:
        """Return the same request with other weights."""
        return replace(self, guidance=replace(self.guidance, weights=weights))

    def with_seed(self, seed: int) -> Settings:
        """Return the same request with another seed."""
        return replace(self, seed=seed)

    def recipe(self, model: str, reward: str | None, device: str, dtype: str) -> Recipe:
        """Return what is sampled; arguments as in :class:`nrg_sampler.runs.recipe.Recipe`."""
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


def _left_alone(values: Mapping[str, Any]) -> set[str]:
    """Name the settings that manifests have and the page does not offer, where they are as usual."""
    offered = {*CONTROLS, "weights", "scale"}
    stated = settings_of(RewardGuidance)
    return {name for name in stated.keys() - offered if name in values and values[name] == stated[name].default}


def _weights(weights: Any) -> RewardWeights:
    if not isinstance(weights, str):
        raise ValueError(f"Expected weights as text such as '1:1:1', but got {weights!r}.")
    return RewardWeights.parse(weights)
