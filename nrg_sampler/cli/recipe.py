"""What to sample: read from the command line, or from the manifest of an earlier run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import GUIDANCE, SAMPLING
from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.manifest import Manifest
from nrg_sampler.rewards import RewardWeights


@dataclass(frozen=True)
class Recipe:
    """Everything but the seed.

    Args:
        prompt: What the video shows.
        guidance: How the reward acts.
        sampling: Arguments of the pipeline call; what is left out is the model's default.
        model: ``"shapes"``, a folder or a Hub id.
        reward: Folder or Hub id, or ``None`` for the reward that comes with the pipeline.
        device: A torch device.
        dtype: Name of the weights' dtype.
        fps: Frames per second of the file, or ``None`` for what the model was made for.
    """

    prompt: str
    guidance: RewardGuidance
    sampling: dict[str, Any]
    model: str
    reward: str | None
    device: str
    dtype: str
    fps: float | None

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Recipe:
        """Read the options that :mod:`nrg_sampler.cli.parser` declares.

        Raises:
            ValueError: If the prompt is empty, a setting is out of its range or the device is absent.
        """
        if not arguments.prompt.strip():
            raise ValueError("Expected a prompt, but got an empty text; say what the video shows.")
        model = arguments.model or BUNDLED
        device = _present(arguments.device or _default_device())
        half = device.startswith("cuda") and model != BUNDLED
        sampling = {name: getattr(arguments, option) for option, name in SAMPLING.items()}
        return cls(
            prompt=arguments.prompt,
            guidance=_guidance(arguments),
            sampling={name: value for name, value in sampling.items() if value is not None},
            model=model,
            reward=arguments.reward,
            device=device,
            dtype=arguments.dtype or ("bfloat16" if half else "float32"),
            fps=arguments.fps,
        )

    @classmethod
    def from_manifest(cls, manifest: Manifest, device: str | None = None) -> Recipe:
        """Take everything from a manifest, save for the device if one is named.

        Raises:
            ValueError: If the settings are of another version or the device is absent.
        """
        try:
            guidance = RewardGuidance(**manifest.guidance)
        except TypeError as error:
            raise ValueError(f"Expected the guidance settings of this version, but {error}.") from error
        return cls(
            prompt=manifest.prompt,
            guidance=guidance,
            sampling=manifest.sampling,
            model=manifest.model,
            reward=manifest.reward,
            device=_present(device or manifest.device),
            dtype=manifest.dtype,
            fps=manifest.fps,
        )

    def guidance_entries(self) -> dict[str, Any]:
        """Return the guidance as JSON can hold it without rounding, so that a replay reads it back equal."""
        weights = RewardWeights.parse(self.guidance.weights)
        values = None if weights.values is None else list(weights.values)
        named = values if values is None or weights.names is None else dict(zip(weights.names, values, strict=True))
        return {**self.guidance.to_dict(), "weights": named}


def _guidance(arguments: argparse.Namespace) -> RewardGuidance:
    given = {name: getattr(arguments, name) for name in GUIDANCE if getattr(arguments, name) is not None}
    return replace(RewardGuidance.paper() if arguments.paper else RewardGuidance(), **given)


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _present(device: str) -> str:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an absent CUDA is an AssertionError
        raise ValueError(f"Expected a device that is present, but got {device!r}; try --device cpu.") from error
    return device
