"""What a reward is trained to do: every choice that an ablation varies, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.rewards.reads import POOLINGS
from nrg_sampler.training.losses import LOSSES

TRUNKS = ("full", "lora", "frozen")


def uniform(count: int, generator: torch.Generator, shift: float) -> Tensor:
    """Draw noise levels uniformly from ``[0, 1)``."""
    return torch.rand(count, generator=generator)


def shifted(count: int, generator: torch.Generator, shift: float) -> Tensor:
    r"""Draw uniform noise levels and shift them toward noise, :math:`s u / (1 + (s - 1) u)`, as samplers do.

    Reference:
        Esser et al., 2024, arXiv:2403.03206, Eq. 23 (the shift); PRFL, arXiv:2511.21541 (5, for a reward).
    """
    level = uniform(count, generator, shift)
    return shift * level / (1 + (shift - 1) * level)


def logit_normal(count: int, generator: torch.Generator, shift: float) -> Tensor:
    """Draw logistic functions of standard normals, mostly middle levels.

    Reference:
        Esser et al., 2024, arXiv:2403.03206, Eq. 19.
    """
    return torch.randn(count, generator=generator).sigmoid()


SIGMA_SAMPLINGS: dict[str, Callable[[int, torch.Generator, float], Tensor]] = {
    "uniform": uniform,
    "shifted": shifted,
    "logit-normal": logit_normal,
}


@dataclass(frozen=True)
class Objective:
    """Choices that decide what a reward learns.

    Args:
        loss: A name in ``LOSSES``.
        tilt: Of the loss ``tilted-regression``: the guidance strength, in the teacher's standard deviations, for which
            the reward is to be right; above 0.
        pooling: How the axes read the trunk's features: ``query`` (attention), ``mean`` or ``max``.
        separate_queries: One query per axis, those outside ``text_axes`` blind to the prompt; else one for all.
        num_members: Members of the ensemble, each trained on a bootstrap resample of the pairs.
        num_token_reads: Rounds in which each word of the prompt reads the features before the axes read the words.
        num_blocks: Transformer blocks in the trunk.
        trunk: ``full`` trains it, ``lora`` trains a low-rank change that is merged at the end, ``frozen`` leaves it.
        lora_rank: Rank of that change.
        sigma_sampling: Distribution of the noise level: ``uniform``, ``shifted`` or ``logit-normal``.
        shift: Of ``shifted``, above 0.
        same_noise: Give both clips of a pair the same noise rather than each its own.
        noised: Train on noised latents; else on clean ones at sigma 0.
        prompt_dropout: Share of pairs whose prompt is withheld, in ``[0, 1)``.
        trajectories: Share of pairs that are read along the sampler's own way to them rather than noised, from 0 to
            1; for clips whose trajectories are kept, see ``TeacherClips``.
        reads_prediction: Let the reward read the clean latents that the velocity predicts, beside the noisy ones; what
            is not read along a trajectory is read clean, as only the sampler knows its velocity.

    Raises:
        ValueError: If a choice is not among those above.
    """

    loss: str = "bradley-terry-ties"
    pooling: str = "query"
    separate_queries: bool = True
    num_members: int = 1
    num_token_reads: int = 1
    num_blocks: int = 2
    trunk: str = "full"
    lora_rank: int = 16
    sigma_sampling: str = "uniform"
    shift: float = 5.0
    same_noise: bool = True
    noised: bool = True
    prompt_dropout: float = 0.0
    trajectories: float = 0.0
    reads_prediction: bool = False
    tilt: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name, known in (
            ("loss", tuple(LOSSES)),
            ("pooling", POOLINGS),
            ("trunk", TRUNKS),
            ("sigma_sampling", tuple(SIGMA_SAMPLINGS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Expected `{name}` to be one of {', '.join(known)}, but got {getattr(self, name)!r}."
                )
        for name, least in (("num_blocks", 1), ("num_members", 1), ("lora_rank", 1), ("num_token_reads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"Expected `{name}` to be at least {least}, but got {getattr(self, name)}.")
        if not (self.shift > 0 and math.isfinite(self.shift)):
            raise ValueError(f"Expected `shift` to be above 0, but got {self.shift}; 1 leaves sigma uniform.")
        if not (self.tilt > 0 and math.isfinite(self.tilt)):
            raise ValueError(f"Expected `tilt` above 0, but got {self.tilt}; the loss `regression` is that near 0.")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"Expected `prompt_dropout` from 0 to below 1, but got {self.prompt_dropout}.")
        if not 0 <= self.trajectories <= 1:
            raise ValueError(f"Expected `trajectories` to be a share from 0 to 1, but got {self.trajectories}.")
        if self.reads_prediction and not self.trajectories:
            raise ValueError(
                "Expected `trajectories` above 0 for a reward that reads predictions, which only the sampler's own "
                "way to a clip has, but got 0; set it to 0.8, say."
            )

    def reward_options(self) -> dict[str, Any]:
        """Return the choices that are arguments of ``LatentReward.from_transformer``."""
        names = (
            "num_blocks",
            "num_token_reads",
            "pooling",
            "separate_queries",
            "num_members",
            "reads_prediction",
        )
        return {name: getattr(self, name) for name in names}

    def sample_sigma(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noise levels, shape ``(count,)``; all 0 for a reward of clean latents or of predictions."""
        sigma = SIGMA_SAMPLINGS[self.sigma_sampling](count, generator, self.shift)
        return sigma if self.noised and not self.reads_prediction else torch.zeros_like(sigma)

    def sample_noise(self, groups: int, members: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw noise for clips that are compared with each other, shape ``(groups, members, *shape)``."""
        if self.same_noise:
            return torch.randn(groups, 1, *shape, generator=generator).expand(-1, members, *shape)
        return torch.randn(groups, members, *shape, generator=generator)

    def sample_dropped(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw which pairs lose their prompt, bool, shape ``(count,)``."""
        return torch.rand(count, generator=generator) < self.prompt_dropout

    def sample_step(self, count: int, generator: torch.Generator) -> int | None:
        """Draw which of ``count`` kept steps a pair is read at; ``None`` if it is noised instead."""
        along = torch.rand(1, generator=generator).item() < self.trajectories
        return int(torch.randint(count, (1,), generator=generator)) if along and count else None

    def identity(self) -> dict[str, Any]:
        """Return the choices by name; those that 0.1.0 did not have only where they are made."""
        later = {"trajectories": 0.0, "reads_prediction": False, "tilt": 1.0}
        return {name: value for name, value in vars(self).items() if name not in later or value != later[name]}
