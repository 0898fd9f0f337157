"""The model card that stands beside a saved reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nrg_sampler.rewards.base import DAMPING

UNKNOWN = "not stated"


def model_card(config: Mapping[str, Any]) -> str:
    """Describe a latent reward from its config: base model, axes, normalisation, accuracy, data, licence.

    Args:
        config: Of a ``LatentReward``; what its ``about`` lacks is reported as not stated.

    Returns:
        Markdown with the metadata block of a Hub model card.
    """
    about = config.get("about") or {}
    axes = list(config["axes"])
    sighted = [axis for axis in axes if axis in config["text_axes"]]
    reads = "one query per axis" if config["separate_queries"] else "one query for all axes"
    lines = [
        "---",
        f"license: {about.get('license', 'other')}",
        "library_name: nrg-sampler",
        "---",
        "",
        "# A noise-aware latent reward",
        "",
        f"Scores noisy latents on {', '.join(axes)}, without decoding them, to guide or rank samples.",
        "",
        f"- **Base model:** {about.get('base_model', UNKNOWN)}; the trunk is its first {config['num_blocks']} "
        f"transformer blocks, read by {reads} ({config['pooling']} pooling).",
        f"- **Latents:** {_latents(config)}.",
        f"- **Axes that see the prompt:** {', '.join(sighted) or 'none'}.",
        f"- **Data:** {about.get('data', UNKNOWN)}.",
        f"- **Training:** {_settings(about.get('training', {}))}.",
        f"- **Recommended scale:** {by_axis(config['recommended_scale'], axes)}.",
        f"- **Recommended damping:** {by_axis(config.get('recommended_damping') or DAMPING, axes)}.",
        f"- **Recommended fading:** {by_axis(config.get('recommended_fading') or 0.0, axes)}.",
        f"- **Licence:** {about.get('license', UNKNOWN)}.",
        "",
        "## Normalisation",
        "",
        "Of the raw reward, over clips of the base model or, where there were none, of the training data.",
        "",
        "| axis | mean | standard deviation |",
        "|---|---|---|",
        *_statistics(config, axes),
        "",
        "## Accuracy on held-out pairs",
        "",
        *_accuracy(about.get("accuracy"), axes),
        "",
    ]
    return "\n".join(lines)


def by_axis(values: float | Sequence[float], axes: Sequence[str]) -> str:
    """One number for all axes, or one for each."""
    if not isinstance(values, Sequence):
        return f"{values:g}"
    return ", ".join(f"{axis} {value:g}" for axis, value in zip(axes, values, strict=True))


def _latents(config: Mapping[str, Any]) -> str:
    vae = (config.get("latent_space") or {}).get("vae", UNKNOWN)
    return f"{config['in_channels']} channels, VAE {vae}; {config['text_dim']} numbers per prompt token"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or UNKNOWN


def _statistics(config: Mapping[str, Any], axes: list[str]) -> list[str]:
    means, stds = config["mean"] or [0.0] * len(axes), config["std"] or [1.0] * len(axes)
    return [f"| {axis} | {mean:.4g} | {std:.4g} |" for axis, mean, std in zip(axes, means, stds, strict=True)]


def _accuracy(table: Mapping[str, Mapping[str, Mapping[str, float]]] | None, axes: list[str]) -> list[str]:
    if not table:
        return ["Not measured."]
    rows = [
        f"| {level} | " + " | ".join(_cell(by_axis.get(axis)) for axis in axes) + " |"
        for level, by_axis in table.items()
    ]
    return [
        "Pairs ranked as their labels rank them, in percent (number of pairs); tied pairs left out.",
        "",
        f"| sigma | {' | '.join(axes)} |",
        f"|---|{'---|' * len(axes)}",
        *rows,
    ]


def _cell(entry: Mapping[str, float] | None) -> str:
    if entry is None or not entry["pairs"]:
        return "-"
    return f"{100 * entry['accuracy']:.1f} ({entry['pairs']:.0f})"
