"""The curriculum of the bundled reward: what each training stage starts from and is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_POOLS = {"rendered": 10000, "sampled": 1600}
POOLS = {**FIRST_POOLS, "sampled-more": 2400, "guided": 3200}
FINAL_POOLS = {**POOLS, "guided-again": 1200}
GUIDED_BY = {"guided": "first-reward", "guided-again": "second-reward"}
HELD_OUT = {"rendered": 500, "sampled": 160, "guided": 160}  # clips of held-out pools


@dataclass(frozen=True)
class RewardStage:
    """One stage of the curriculum.

    Args:
        pools: Kinds of clips and how many of each.
        steps: Optimiser steps.
        start: The stage whose reward is trained further, on the oracle's scores as well as on pairs: preferences hold
            no information about how far apart two clips are, and a reward that exaggerates differences is easier to
            over-optimise. ``None`` starts from the blocks of the video model and trains on pairs alone.
        sigma: Range of noise levels.
        disturbance: Largest norm of a perturbation along the reward's own gradient, see `rating.disturbed`; clips have
            norms of about 85.
        kept: Share of the weights of ``start`` in the average with them that ends the stage.
        prompts: How many prompts each group of clips is rated under: its own and changed ones.
        naming: Weight of the auxiliary loss of `AttributeClassifier`.
    """

    pools: Mapping[str, int]
    steps: int
    start: str | None = None
    sigma: tuple[float, float] = (0.0, 1.0)
    disturbance: float = 0.0
    kept: float = 0.0
    prompts: int = 1
    naming: float = 0.0


CURRICULUM = {
    # Guides the clips of the pool "guided", which all later stages see.
    "first-reward": RewardStage(FIRST_POOLS, 1600),
    # These two measure what noise in training is worth, so they differ in nothing else.
    "clean-reward": RewardStage(POOLS, 800, sigma=(0.0, 0.0)),
    "noised-reward": RewardStage(POOLS, 800),
    # What a fault looks like is learned several times faster without noise, so noise comes second.
    "second-reward": RewardStage(POOLS, 2400, start="clean-reward"),
    # With clips that the one before has guided, at strengths that over-optimise it.
    "third-reward": RewardStage(FINAL_POOLS, 1200, start="second-reward"),
    # Unlearns what guidance would exploit. That costs accuracy on unperturbed clips; an average with the weights
    # before restores the accuracy and keeps most of the rest (Wortsman et al., 2022, arXiv:2109.01903).
    "robust-reward": RewardStage(FINAL_POOLS, 1700, start="third-reward", disturbance=8.0, kept=0.4),
    # Text alignment: under several prompts, which of a few clips fits a prompt best can hardly be memorised.
    "reward": RewardStage(FINAL_POOLS, 3300, start="robust-reward", disturbance=8.0, prompts=4, naming=0.2),
}
