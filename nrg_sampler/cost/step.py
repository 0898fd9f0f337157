"""One denoising step of a workload, without and with guidance, and what it takes by count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nrg_sampler.cost.counting import Counted, count
from nrg_sampler.cost.prediction import block_costs, predicted_ratio
from nrg_sampler.cost.workloads import Workload
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.guidance.step import guided_velocity
from nrg_sampler.guidance.trace import GuidanceTrace
from nrg_sampler.hosts.shared_forward import SharedReward, following
from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.rewards.gradient import prepared

SIGMA = 0.5  # cost does not depend on it
CFG = 5.0


class _BeyondTheLeaf:
    """A reward that is handed a copy of the latents: the operation counter cannot follow a leaf into a module."""

    def __init__(self, reward: Reward) -> None:
        self.axes, self._reward = reward.axes, reward

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return self._reward(latents.clone(), sigma, conditioning)


class Step:
    """One denoising step of a workload, without and with guidance.

    Args:
        workload: What is computed.
        num_blocks: Blocks in the reward; ``None`` for a step without one.
        checkpointing: Whether the reward saves memory, see :mod:`nrg_sampler.rewards.recompute`.
        device: Where the weights are.
        dtype: Of the weights and latents.
        shared: Whether the reward reads the transformer's features instead of running a forward pass of its own.
        guidance: The settings.
    """

    def __init__(
        self,
        workload: Workload,
        num_blocks: int | None,
        checkpointing: bool,
        device: str,
        dtype: torch.dtype,
        shared: bool = False,
        guidance: RewardGuidance = RewardGuidance(),
    ) -> None:
        self.workload, self.shared, self.guidance = workload, shared, guidance
        with _default_dtype(dtype), torch.device(device):
            self.transformer: Any = workload.build()
            reward: Any = None if num_blocks is None else workload.build_reward(num_blocks)
            self.reward: Any = reward
            self.latents, self.prompt = workload.random_inputs(device, dtype)
        if checkpointing:
            self.reward.enable_gradient_checkpointing()
        self.modules: tuple[torch.nn.Module, ...] = tuple(filter(None, (self.transformer, self.reward)))

    @cached_property
    def conditioning(self) -> Conditioning:
        """The prompt as the reward prepares it, once for all steps of a run."""
        given = Conditioning(self.prompt, self.workload.prompt_mask(str(self.prompt.device)))
        return prepared(self.reward, given, self.latents.device)

    def compile(self, compiled: str) -> None:
        """Compile the reward, or with ``"both"`` the transformer too, when they are first run."""
        self.reward.compile()
        if compiled == "both":
            self.transformer.compile()

    def velocity(self) -> Tensor:
        """Evaluate the transformer as often as an unguided step does."""
        with torch.no_grad():
            inputs = self.workload.inputs(self.latents, self.prompt)
            outputs: list[Tensor] = [self.transformer(**inputs)[0] for _ in range(self.workload.evaluations)]
        return outputs[0] if len(outputs) == 1 else outputs[1] + CFG * (outputs[0] - outputs[1])

    def unguided(self) -> Tensor:
        """Take a step without guidance; returns the latents after it."""
        return self.latents - 0.02 * self.velocity()

    def guided(self) -> Tensor:
        """Take a step with guidance; returns the latents after it."""
        if not self.shared:
            return self._guided_by(_BeyondTheLeaf(self.reward))
        with following(self.transformer, SharedReward(self.reward)) as reward:
            return self._guided_by(reward)

    def _guided_by(self, reward: Any) -> Tensor:
        trace = GuidanceTrace(self.reward.axes)  # keeps the numbers on the device, as a sampled run does
        velocity = guided_velocity(
            self.latents,
            self.velocity(),
            SIGMA,
            reward,
            self.conditioning,
            self.guidance,
            step_index=0,
            num_inference_steps=1,
            trace=trace,
        )
        return self.latents - 0.02 * velocity


def count_step(
    workload: Workload,
    num_blocks: int,
    checkpointing: bool,
    dtype: torch.dtype,
    shared: bool = False,
    guidance: RewardGuidance = RewardGuidance(),
) -> tuple[Counted, Counted, float]:
    """Count an unguided and a guided step at full size with fake tensors, which take no memory and no time.

    Returns:
        What the unguided and the guided step take, and the predicted ratio of their operations.
    """
    # Entered while building only: what `guided_velocity` makes of plain numbers has to stay real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = Step(workload, num_blocks, checkpointing, "cpu", dtype, shared, guidance)
    assert step.conditioning  # prepared here, for a step takes it as it is
    unguided, guided = count(step.unguided, step.modules[:1]), count(step.guided, step.modules)
    costs = block_costs(step.transformer, workload.tokens)
    predicted = predicted_ratio(
        costs,
        num_blocks,
        workload.evaluations,
        read=block_costs(step.transformer, workload.read_by(guidance).tokens),
        shared=shared,
        checkpointing=checkpointing,
    )
    return unguided, guided, predicted


def count_unguided(workload: Workload, dtype: torch.dtype) -> tuple[Counted, int]:
    """Count an unguided step alone, at full size with fake tensors; and the bytes of the transformer's weights."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = Step(workload, None, False, "cpu", dtype)
    return count(step.unguided, step.modules), bytes_of(step.transformer)


def bytes_of(module: torch.nn.Module) -> int:
    """Return the size of the weights of a module."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
