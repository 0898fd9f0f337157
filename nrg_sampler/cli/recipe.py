"""Read a recipe from the options that :mod:`nrg_sampler.cli.parser` declares."""

from __future__ import annotations

import argparse
from dataclasses import replace

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import GUIDANCE, SAMPLING
from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.recipe import Recipe, default_device, present


def from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Return what the options ask for.

    Raises:
        ValueError: If the prompt is empty, a setting is out of its range or the device is absent.
    """
    if not arguments.prompt.strip():
        raise ValueError("Expected a prompt, but got an empty text; say what the video shows.")
    model = arguments.model or BUNDLED
    device = present(arguments.device or default_device())
    half = device.startswith("cuda") and model != BUNDLED
    sampling = {name: getattr(arguments, option) for option, name in SAMPLING.items()}
    return Recipe(
        prompt=arguments.prompt,
        guidance=guidance_from(arguments),
        sampling={name: value for name, value in sampling.items() if value is not None},
        model=model,
        reward=arguments.reward,
        device=device,
        dtype=arguments.dtype or ("bfloat16" if half else "float32"),
        fps=arguments.fps,
        scheduler=arguments.scheduler,
    )


def guidance_from(arguments: argparse.Namespace) -> RewardGuidance:
    """Return the guidance that the options ask for.

    Raises:
        ValueError: If a setting is out of its range.
    """
    given = {name: getattr(arguments, name) for name in GUIDANCE if getattr(arguments, name) is not None}
    return replace(RewardGuidance.paper() if arguments.paper else RewardGuidance(), **given)
