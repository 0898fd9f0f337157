"""``--plan``: what a guided run costs in network evaluations and memory, before it is paid."""

from __future__ import annotations

import json
from typing import Any

from nrg_sampler.cli.recipe import Recipe

BACKWARD = 1.0  # a backward pass to the input alone costs about one forward pass
UNGUIDED_STEPS = 50  # of Wan pipelines when nothing else is said


def run(recipe: Recipe, as_json: bool) -> int:
    """Print the plan of one video."""
    from nrg_sampler.cli.sampler import load

    plan = estimate(load(recipe), recipe)
    print(json.dumps(plan) if as_json else describe(plan))
    return 0


def estimate(pipe: Any, recipe: Recipe) -> dict[str, float]:
    """Count evaluations of the whole transformer, the reward's share by its number of parameters.

    Args:
        pipe: A loaded pipeline.
        recipe: What would be sampled.

    Returns:
        ``steps``, ``guided_steps``, ``evaluations`` (unguided), ``reward_evaluations`` (their extra cost),
        ``ratio`` (guided over unguided) and the sizes of ``weights_mb`` and ``reward_mb``.
    """
    sampling = {
        "num_inference_steps": UNGUIDED_STEPS,
        "guidance_scale": 5.0,
        **pipe.sampling_defaults,
        **recipe.sampling,
    }
    steps = int(sampling["num_inference_steps"])
    guided = sum(recipe.guidance.skips(step, steps) is None for step in range(steps)) if recipe.guidance.scale else 0
    evaluations = steps * (2 if sampling["guidance_scale"] > 1 else 1)
    modules = {name: part for name, part in pipe.components.items() if hasattr(part, "parameters")}
    modules.pop("reward_model", None)
    reward = pipe.reward_model
    share = _count(reward) / max(1, _count(pipe.transformer))
    extra = guided * share * (1 + BACKWARD)
    return {
        "steps": steps,
        "guided_steps": guided,
        "evaluations": evaluations,
        "reward_evaluations": round(extra, 1),
        "ratio": round(1 + extra / evaluations, 2),
        "weights_mb": round(sum(map(_megabytes, modules.values())), 1),
        "reward_mb": round(_megabytes(reward), 1),
    }


def describe(plan: dict[str, float]) -> str:
    """Put the plan into words."""
    lines = (
        "{steps} steps, {evaluations} evaluations of the transformer.",
        "The reward guides {guided_steps} steps at the cost of about {reward_evaluations} evaluations: "
        "{ratio} times an unguided run.",
        "Best of {ratio} unguided videos costs the same.",
        "Weights {weights_mb} MB and {reward_mb} MB for the reward; activations come on top.",
    )
    return "\n".join(lines).format(**plan)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters()) if hasattr(module, "parameters") else 0


def _megabytes(module: Any) -> float:
    return (
        sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20
        if hasattr(module, "parameters")
        else 0.0
    )
