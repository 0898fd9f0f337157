"""Read a recipe from the options that :mod:`nrg_sampler.cli.parser` declares."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import SAMPLING
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.presets import DEFAULT
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.device import default_device, require_device, weights_dtype
from nrg_sampler.runs.recipe import Recipe


def from_arguments(arguments: argparse.Namespace) -> Recipe:
    """Return what the options ask for.

    Raises:
        ValueError: If the prompt is empty, a setting is out of its range or the device is absent.
    """
    if not arguments.prompt.strip():
        raise ValueError("Expected a prompt, but got an empty text; say what the video shows.")
    model = arguments.model or BUNDLED
    device = require_device(arguments.device or default_device())
    sampling = {name: getattr(arguments, option) for option, name in SAMPLING.items()}
    return Recipe(
        prompt=arguments.prompt,
        guidance=guidance_from(arguments),
        sampling={name: value for name, value in sampling.items() if value is not None},
        model=model,
        reward=arguments.reward,
        device=device,
        dtype=arguments.dtype or weights_dtype(model, device),
        fps=arguments.fps,
        scheduler=arguments.scheduler,
        search=_search(arguments),
        checkpointing=bool(arguments.checkpointing),
        lookahead=_lookahead(arguments),
    )


def guidance_from(
    arguments: argparse.Namespace, preset: str = DEFAULT, kind: type[RewardGuidance] = RewardGuidance
) -> RewardGuidance:
    """Return the guidance that the options ask for.

    Args:
        arguments: The options of :func:`nrg_sampler.cli.parser.add_guidance`.
        preset: As given there.
        kind: As given there.

    Raises:
        ValueError: If a setting is out of its range, or both a preset and the paper's settings are named.
    """
    if arguments.paper and arguments.preset:
        raise ValueError("Expected --preset or --paper, but got both; choose one.")
    base = kind.paper() if arguments.paper else kind.preset(arguments.preset or preset)
    settings = settings_of(kind)
    return replace(base, **{name: settings[name].read(text) for name, text in _given(arguments, kind).items()})


def _given(arguments: argparse.Namespace, kind: type[RewardGuidance] = RewardGuidance) -> dict[str, str]:
    """Return the settings that were given, as text by their names."""
    stated = settings_of(kind)
    options = {name: getattr(arguments, setting.option.replace("-", "_")) for name, setting in stated.items()}
    return {**{name: str(text) for name, text in options.items() if text is not None}, **dict(arguments.set or ())}


def _lookahead(arguments: argparse.Namespace) -> Ahead | None:
    """The look-ahead samples of ``generate``; those that the reward scores by the weights that guide."""
    text: str | None = getattr(arguments, "lidar", None)
    if text is not None and _search(arguments) is not None:
        raise ValueError(
            "Expected --lidar or a search, but got both; say --lidar 'reward samples=4' for how many samples."
        )
    return None if text is None else Ahead.parse(text).weighed(_given(arguments).get("weights"))


def _search(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The search of ``generate``, by the weights that guide; other subcommands have none."""
    best_of: int | None = getattr(arguments, "best_of", None)
    resampling, particles = (bool(getattr(arguments, name, False)) for name in ("search", "particles"))
    if resampling and particles:
        raise ValueError("Expected --search or --particles, but got both; choose one.")
    if best_of is None and not resampling and not particles:
        return None
    from nrg_sampler.search import Search

    weights = _given(arguments).get("weights")
    settings = Search(weights=weights) if resampling else Search.best_of(1, weights)
    settings = Search.particles(weights=weights) if particles else settings
    return (settings if best_of is None else replace(settings, candidates=best_of)).to_dict()
