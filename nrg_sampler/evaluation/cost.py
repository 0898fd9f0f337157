"""What guidance costs: time, counted operations and memory of a guided step over an unguided one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nrg_sampler.evaluation.counting import Counted, count
from nrg_sampler.evaluation.memory import MIB, peak_memory
from nrg_sampler.evaluation.prediction import block_costs, predicted_ratio
from nrg_sampler.evaluation.winrate import bootstrap_interval
from nrg_sampler.evaluation.workloads import Workload
from nrg_sampler.guidance import RewardGuidance
from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.rewards.gradient import prepared
from nrg_sampler.shared import SharedReward, following
from nrg_sampler.step import guided_velocity
from nrg_sampler.trace import GuidanceTrace

SIGMA = 0.5  # cost does not depend on it
CFG = 5.0
WARMUP = 2
TIMED_ON_CPU = 1e11  # operations of an unguided step above which a processor would take minutes a step


@dataclass(frozen=True)
class CostRow:
    """Cost of one configuration.

    Args:
        config: Name of the workload.
        batch: Videos sampled at once.
        mode: ``"separate"``: the reward runs its own forward pass; ``"shared"``: it reads the denoiser's features;
            ``"strided"``: it runs its own on a part of the latents.
        every: Each n-th step is guided.
        frame_stride: Each n-th latent frame is read.
        crop: Share of the height and of the width that is read.
        blocks: Transformer blocks in the reward.
        k_time: Measured time over that of an unguided run, median over pairs of steps; ``None`` where nothing was timed.
        k_time_low: Lower end of its 95 % bootstrap interval.
        k_time_high: Upper end.
        k_processor: The same as ``k_time`` in processor time, which other programs disturb less; ``None`` on a GPU.
        k_flops: The same for counted operations.
        k_predicted: The same by formula, see ``predicted_ratio``.
        peak_memory_mib: Highest memory of a guided step, weights of transformer and reward included.
        unguided_memory_mib: The same without guidance.
        memory: ``"measured"`` by the device, or as the growth of the process; or ``"counted"`` from the tensors alive at any
            moment.
        checkpointing: Whether the reward computes again what linear layers gave rather than keep it.
        compiled: What was compiled before it was timed: ``"reward"`` or ``"both"``; ``None`` for nothing.
        n: Timed pairs of an unguided and a guided step.
        device: Where it was timed.
    """

    config: str
    batch: int
    mode: str
    every: int
    frame_stride: int
    crop: float
    blocks: int
    k_time: float | None
    k_time_low: float | None
    k_time_high: float | None
    k_processor: float | None
    k_flops: float
    k_predicted: float
    peak_memory_mib: float
    unguided_memory_mib: float
    memory: str
    checkpointing: bool
    compiled: str | None
    n: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        num_blocks: Blocks in the reward.
        checkpointing: Whether the reward saves memory, see :mod:`nrg_sampler.rewards.recompute`.
        device: Where the weights are.
        dtype: Of the weights and latents.
        shared: Whether the reward reads the transformer's features instead of running a forward pass of its own.
        guidance: The settings.
    """

    def __init__(
        self,
        workload: Workload,
        num_blocks: int,
        checkpointing: bool,
        device: str,
        dtype: torch.dtype,
        shared: bool = False,
        guidance: RewardGuidance = RewardGuidance(),
    ) -> None:
        self.workload, self.shared, self.guidance = workload, shared, guidance
        with _default_dtype(dtype), torch.device(device):
            self.transformer: Any = workload.build()
            self.reward: Any = workload.build_reward(num_blocks)
            self.latents, self.prompt = workload.random_inputs(device, dtype)
        if checkpointing:
            self.reward.enable_gradient_checkpointing()
        self.modules: tuple[torch.nn.Module, ...] = (self.transformer, self.reward)

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
        return self.latents - 0.02 * self.velocity()

    def guided(self) -> Tensor:
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


@dataclass(frozen=True)
class Timed:
    """What ``n`` pairs of an unguided and a guided step took.

    Args:
        seconds: Of the guided over the unguided step of each pair, by the clock, shape ``(n,)``.
        processor: The same in processor time, all threads together; ``None`` where another device did the work.
        peaks: The device's own peak of both steps in bytes, if it keeps one.
    """

    seconds: Tensor
    processor: Tensor | None = None
    peaks: tuple[int, int] | None = None


def time_step(step: Step, n: int, device: torch.device) -> Timed:
    """Time an unguided and a guided step in turn, ``n`` times."""
    ratios = []
    for turn in range(WARMUP + n):
        taken = [_seconds(call, device) for call in (step.unguided, step.guided)]
        if turn >= WARMUP:
            ratios.append([guided / unguided for unguided, guided in zip(*taken, strict=True)])
    seconds, processor = torch.tensor(ratios).T
    return Timed(seconds, processor) if device.type == "cpu" else Timed(seconds)


def _seconds(call: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Return how long a call takes by the clock, and in processor time."""
    _wait(device)
    started, busy = time.perf_counter(), time.process_time()
    call()
    _wait(device)
    return time.perf_counter() - started, time.process_time() - busy


def cost_rows(
    workload: Workload,
    num_blocks: int | None = None,
    *,
    mode: str = "separate",
    every: Iterable[int] = (1, 2),
    frame_stride: int = 2,
    crop: float = 1.0,
    checkpointing: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    compiled: str | None = None,
    n: int = 20,
    weigh: bool = False,
) -> Iterator[CostRow]:
    """Yield one row for each number in ``every``.

    Operations and memory are counted at full size. On a CUDA device with room for it, and on the processor for
    workloads that take less than seconds, steps are timed as well and memory is measured where the device can tell.

    Args:
        workload: What is computed.
        num_blocks: Blocks in the reward; a quarter of the transformer's by default.
        mode: ``"separate"``, ``"shared"`` where the reward reads the transformer's own features, or ``"strided"``
            where it reads a part of the latents.
        frame_stride: Of that part, as in ``RewardGuidance``.
        crop: Likewise.
        every: Each n-th step guided; the unguided steps between are counted at their own cost.
        checkpointing: Whether the reward saves memory, see :mod:`nrg_sampler.rewards.recompute`.
        device: Where to time.
        dtype: Of the weights.
        compiled: What to compile before it is timed: ``"reward"``, or ``"both"`` for the transformer too.
        n: Timed pairs.
        weigh: Take a step of each kind for real where nothing is timed too, and measure by how much the process grows.

    Raises:
        ValueError: If the transformer has fewer blocks, its features cannot be shared, or no part can be read of its
            latents.
    """
    shared = mode == "shared"
    if shared and workload.transformer != "WanTransformer3DModel":
        raise ValueError(
            f"Expected mode 'separate' for {workload.name}, but got 'shared'; features are shared with Wan transformers."
        )
    if shared and compiled:
        raise ValueError(
            f"Expected mode 'separate' with compiled='{compiled}', but got 'shared'; hooks break a compiled graph."
        )
    total = sum(workload.config.get(name, 0) for name in ("num_layers", "num_single_layers"))
    blocks = round(total / 4) if num_blocks is None else num_blocks
    if not 1 <= blocks <= total:
        raise ValueError(f"Expected a reward of 1 to {total} blocks for {workload.name}, but got {blocks}.")
    guidance = RewardGuidance(frame_stride=frame_stride, crop=crop) if mode == "strided" else RewardGuidance()
    unguided, guided, predicted = count_step(workload, blocks, checkpointing, dtype, shared, guidance)
    flops = guided.flops / unguided.flops
    timed = None
    if n and _can_time(torch.device(device), unguided.flops, guided.peak_bytes):
        step = Step(workload, blocks, checkpointing, device, dtype, shared, guidance)
        if compiled:
            step.compile(compiled)
        timed = _measure(step, n, torch.device(device))
    measured = timed and timed.peaks
    if weigh and not measured:
        measured = _weighed(
            lambda: Step(workload, blocks, checkpointing, device, dtype, shared, guidance), torch.device(device)
        )
    peaks = measured or (unguided.peak_bytes, guided.peak_bytes)
    for gap in every:
        yield CostRow(
            config=workload.name,
            batch=workload.latents[0],
            mode=mode,
            every=gap,
            frame_stride=guidance.frame_stride,
            crop=guidance.crop,
            blocks=blocks,
            **_timed_ratios(timed, gap),
            k_flops=_spread(flops, gap),
            k_predicted=_spread(predicted, gap),
            peak_memory_mib=round(peaks[1] / MIB, 1),
            unguided_memory_mib=round(peaks[0] / MIB, 1),
            memory="measured" if measured else "counted",
            checkpointing=checkpointing,
            compiled=compiled if timed else None,
            n=n if timed else 0,
            device=device if timed else "none",
        )


def _spread(ratio: float, gap: int) -> float:
    """Return the cost of a run in which each ``gap``-th step costs ``ratio`` unguided ones."""
    return round(1 + (ratio - 1) / gap, 3)


def _timed_ratios(timed: Timed | None, gap: int) -> dict[str, float | None]:
    """Return the measured fields of a row."""
    if timed is None:
        return dict.fromkeys(("k_time", "k_time_low", "k_time_high", "k_processor"))
    low, high = bootstrap_interval(timed.seconds, statistic=_median)
    return {
        "k_time": _spread(timed.seconds.quantile(0.5).item(), gap),
        "k_time_low": _spread(low, gap),
        "k_time_high": _spread(high, gap),
        "k_processor": None if timed.processor is None else _spread(timed.processor.quantile(0.5).item(), gap),
    }


def _median(rows: Tensor) -> Tensor:
    return rows.quantile(0.5, dim=1)  # `median` takes the lower of two in the middle


def _measure(step: Step, n: int, device: torch.device) -> Timed:
    timed = time_step(step, n, device)
    return replace(timed, peaks=_peaks(step, device)) if device.type == "cuda" else timed


def _weighed(build: Callable[[], Step], device: torch.device) -> tuple[int, int] | None:
    """Peaks in bytes of a step built here: the device's own, or on a processor by how much this process grows.

    ``None`` if the system does not tell.
    """
    import psutil

    before = psutil.Process().memory_info().rss if device.type == "cpu" else 0
    step = build()
    assert step.conditioning  # prepared once for a run
    peaks = _peaks(step, device)
    return None if peaks is None else (peaks[0] - before, peaks[1] - before)


def _peaks(step: Step, device: torch.device) -> tuple[int, int] | None:
    """Take an unguided and a guided step; their peaks in bytes, as `peak_memory` measures them."""
    peaks = []
    for call in (step.unguided, step.guided):
        with peak_memory(device) as peak:
            call()
        if peak.mib is None:
            return None
        peaks.append(int(peak.mib * MIB))
    return peaks[0], peaks[1]


def _can_time(device: torch.device, flops: int, peak_bytes: int) -> bool:
    if device.type == "cuda":
        return peak_bytes < 0.9 * torch.cuda.get_device_properties(device).total_memory
    return flops < TIMED_ON_CPU


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
