"""What is compared: arms, each a name and a way to sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.search import Search

UNGUIDED = "unguided"
AXIS_WEIGHTS = {"VQ": "1:0:0", "MQ": "0:1:0", "TA": "0:0:1"}
MIXED_WEIGHTS = ("0.1:0.1:0.8", "0.1:0.1:0.6", "0.5:0.5:0")  # with those of one axis, the paper's Table 5 and more
FLOOR = "TA"
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Arm:
    """One way to sample.

    Args:
        name: What tables call it.
        guidance: Its settings; ``None`` samples without guidance.
        steps: Denoising steps, as a multiple of the other arms'.
        search: How the best of several candidates is found; ``None`` takes the one of the prompt's own seed.
        judge: Who chooses among finished candidates: a judge's name, or ``None`` for the reward.
        reward: Which reward guides: ``"target"``; ``"clean"``, trained on clean latents; ``"pixel"``, the pixel judge
            through the predicted clean latents and the VAE; ``"random"``, a random direction with the norm of the
            target's gradient.
    """

    name: str
    guidance: RewardGuidance | None = None
    steps: float = 1.0
    search: Search | None = None
    judge: str | None = None
    reward: str = "target"

    @property
    def weights(self) -> str:
        """The weights it guides by, as a table writes them."""
        return str(self.guidance.weights) if self.guidance else "-"


def weights_suite(base: RewardGuidance) -> list[Arm]:
    """The unguided run, each axis alone, all three, each with the sign flipped; then the paper's mixtures.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, Table 5.
    """
    arms = [Arm(UNGUIDED), Arm("1:1:1", replace(base, weights="1:1:1"))]
    for weights in AXIS_WEIGHTS.values():
        arms.append(Arm(weights, replace(base, weights=weights)))
    for weights in AXIS_WEIGHTS.values():
        arms.append(Arm(f"{weights} flipped", flipped(replace(base, weights=weights))))
    for weights in MIXED_WEIGHTS:
        arms.append(Arm(weights, replace(base, weights=weights)))
    without = MIXED_WEIGHTS[-1]
    return [*arms, Arm(f"{without} floor {FLOOR}", replace(base, weights=without, floor=FLOOR))]


def noise_aware_suite(base: RewardGuidance) -> list[Arm]:
    """A reward trained on noised latents beside one trained on clean ones, and the latter where there is no noise.

    Reference:
        Liu et al., 2025, arXiv:2501.13918v1, Table 7 (motion quality alone).
    """
    motion = replace(base, weights=AXIS_WEIGHTS["MQ"])
    return [
        Arm(UNGUIDED),
        Arm("noised latents", motion),
        Arm("clean latents", motion, reward="clean"),
        Arm("clean latents, read at x0", replace(motion, reads="clean"), reward="clean"),
        Arm("pixels through x0", replace(motion, disagreement=0.0), reward="pixel"),
    ]


def rivals_suite(base: RewardGuidance) -> list[Arm]:
    """What else the same network evaluations could buy, and controls that must not help."""
    weights = base.weights
    paper = RewardGuidance.paper(weights=weights)
    return [
        Arm(UNGUIDED),
        Arm("guided", base),
        Arm("paper", paper),
        Arm("more steps x1.4", steps=1.4),
        Arm("more steps x2", steps=2.0),
        Arm("best of 2", search=Search.best_of(2, weights)),
        Arm("best of 4", search=Search.best_of(4, weights)),
        Arm("best of 2, oracle chooses", search=Search.best_of(2), judge="oracle"),
        Arm("resampling", search=Search(weights=weights)),
        Arm("particles", search=Search.particles(4, weights)),
        Arm("guided, best of 2", base, search=Search.best_of(2, weights)),
        Arm("guided every 2nd step", replace(base, every=2)),
        Arm("guided, reused every 2nd", replace(base, every=2, reuse=True)),
        Arm("skip-gradient", replace(base, reads="clean")),
        Arm("random direction", replace(base, disagreement=0.0), reward="random"),
        Arm("flipped", flipped(base)),
    ]


def scale_sweep_suite(base: RewardGuidance) -> list[Arm]:
    """The same guidance from weak to far too strong."""
    return [Arm(UNGUIDED), *(Arm(f"scale {scale:g}", replace(base, scale=scale * base.scale)) for scale in SCALES)]


def flipped(guidance: RewardGuidance) -> RewardGuidance:
    """Return the guidance that pushes the other way."""
    return replace(guidance, scale=-guidance.scale)


SUITES: dict[str, Callable[[RewardGuidance], list[Arm]]] = {
    "weights": weights_suite,
    "noise-aware": noise_aware_suite,
    "rivals": rivals_suite,
    "scale-sweep": scale_sweep_suite,
}
