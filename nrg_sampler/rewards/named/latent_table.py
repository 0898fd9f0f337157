"""The table of published latent rewards, which guide the pipelines that they were trained on.

Nothing here loads weights; :func:`nrg_sampler.rewards.by_name.reward_for` does.

References:
    [1] Zhong et al., 2026, arXiv:2602.04928 (Euphonium).
"""

from __future__ import annotations

from dataclasses import dataclass


def canonical(name: str) -> str:
    """Return a name without what people vary: case, hyphens, underscores, spaces and full stops."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


@dataclass(frozen=True)
class LatentEntry:
    """A published reward on noisy latents: it guides the pipelines that it was trained on, and needs no VAE.

    Args:
        name: What people type.
        aliases: Other names for it.
        source: Hub id that has ``folder``.
        folder: Where its files are there.
        licence: Of the weights, as their publisher states it.
        axes: Names of its axes.
        score: What its number is.
        reads: What it is called with.
        hosts: The pipelines that it guides.
        weights_at_hand: Whether the published weights were loaded here; else only tiny random ones.
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    folder: str
    licence: str
    axes: tuple[str, ...]
    score: str
    reads: str
    hosts: str
    weights_at_hand: bool = False


LATENT_PRM = LatentEntry(
    name="latent-prm",
    aliases=("euphonium",),
    source="Yukino271828/SoliReward",
    folder="latent_prm",
    licence="Apache-2.0 by the README of its code",
    axes=("MQ",),
    score="one logit",
    reads="noisy latents, the timestep, the prompt's features with their mask, and its pooled vector",
    hosts="HunyuanVideo",
)
LATENT_TABLE = (LATENT_PRM,)
LATENT_NAMES = {canonical(name): entry for entry in LATENT_TABLE for name in (entry.name, *entry.aliases)}


def find_latent(name: str) -> LatentEntry | None:
    """Return the entry of the latent reward that a name or alias means."""
    return LATENT_NAMES.get(canonical(name))
