"""What is compared: arms, each a name and the guidance it samples with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nrg_sampler.guidance import RewardGuidance

UNGUIDED = "unguided"
AXIS_WEIGHTS = {"VQ": "1:0:0", "MQ": "0:1:0", "TA": "0:0:1"}


@dataclass(frozen=True)
class Arm:
    """One way to sample.

    Args:
        name: What tables call it.
        guidance: Its settings; ``None`` samples without guidance.
    """

    name: str
    guidance: RewardGuidance | None = None


def weights_suite(base: RewardGuidance) -> list[Arm]:
    """The unguided run, each axis alone, all three, and each axis alone with the sign of the gradient flipped."""
    arms = [Arm(UNGUIDED), Arm("1:1:1", replace(base, weights="1:1:1"))]
    for weights in AXIS_WEIGHTS.values():
        arms.append(Arm(weights, replace(base, weights=weights)))
    for weights in AXIS_WEIGHTS.values():
        arms.append(Arm(f"{weights} flipped", replace(base, weights=weights, scale=-base.scale)))
    return arms


SUITES = {"weights": weights_suite}
