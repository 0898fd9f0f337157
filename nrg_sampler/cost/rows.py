"""A row of costs for one configuration: time, counted operations and memory of a guided step over an unguided one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.cost.memory import MIB
from nrg_sampler.cost.step import Step, count_step
from nrg_sampler.cost.timing import Timed, measure_step, weigh_step
from nrg_sampler.cost.workloads import Workload
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards.frames import ALL
from nrg_sampler.statistics import bootstrap_interval

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
        frames: Which latent frames are read.
        crop: Share of the height and of the width that is read.
        blocks: Transformer blocks in the reward.
        k_time: Measured time over that of an unguided run, median over pairs of steps; ``None`` where nothing was
            timed.
        k_time_low: Lower end of its 95 % bootstrap interval.
        k_time_high: Upper end.
        k_processor: The same as ``k_time`` in processor time, which other programs disturb less; ``None`` on a GPU.
        k_flops: The same for counted operations.
        k_predicted: The same by formula, see ``predicted_ratio``.
        peak_memory_mib: Highest memory of a guided step, weights of transformer and reward included.
        unguided_memory_mib: The same without guidance.
        memory: ``"measured"`` by the device, or as the growth of the process; or ``"counted"`` from the tensors alive
            at any moment.
        checkpointing: Whether the reward computes again what linear layers gave rather than keep it.
        compiled: What was compiled before it was timed: ``"reward"`` or ``"both"``; ``None`` for nothing.
        n: Timed pairs of an unguided and a guided step.
        device: Where it was timed.
    """

    config: str
    batch: int
    mode: str
    every: int
    frames: str
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
        """Return the row as plain JSON values."""
        return asdict(self)


def cost_rows(
    workload: Workload,
    num_blocks: int | None = None,
    *,
    mode: str = "separate",
    every: Iterable[int] = (1, 2),
    frames: str = "every:2",
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
        frames: Of that part, as in ``RewardGuidance``.
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
            f"Expected mode 'separate' for {workload.name}, but got 'shared'; only Wan transformers share features."
        )
    if shared and compiled:
        raise ValueError(
            f"Expected mode 'separate' with compiled='{compiled}', but got 'shared'; hooks break a compiled graph."
        )
    total = sum(workload.config.get(name, 0) for name in ("num_layers", "num_single_layers"))
    blocks = round(total / 4) if num_blocks is None else num_blocks
    if not 1 <= blocks <= total:
        raise ValueError(f"Expected a reward of 1 to {total} blocks for {workload.name}, but got {blocks}.")
    guidance = RewardGuidance(frames=frames, crop=crop) if mode == "strided" else RewardGuidance()
    unguided, guided, predicted = count_step(workload, blocks, checkpointing, dtype, shared, guidance)
    flops = guided.flops / unguided.flops
    timed = None
    if n and _can_time(torch.device(device), unguided.flops, guided.peak_bytes):
        step = Step(workload, blocks, checkpointing, device, dtype, shared, guidance)
        if compiled:
            step.compile(compiled)
        timed = measure_step(step, n, torch.device(device))
    measured = timed and timed.peaks
    if weigh and not measured:
        measured = weigh_step(
            lambda: Step(workload, blocks, checkpointing, device, dtype, shared, guidance), torch.device(device)
        )
    peaks = measured or (unguided.peak_bytes, guided.peak_bytes)
    for gap in every:
        yield CostRow(
            config=workload.name,
            batch=workload.latents[0],
            mode=mode,
            every=gap,
            frames=guidance.frames or ALL,
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


def _can_time(device: torch.device, flops: int, peak_bytes: int) -> bool:
    if device.type == "cuda":
        return peak_bytes < 0.9 * torch.cuda.get_device_properties(device).total_memory
    return flops < TIMED_ON_CPU
