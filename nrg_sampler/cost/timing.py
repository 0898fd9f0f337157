"""Take steps for real: seconds, processor time and peak memory of an unguided and a guided one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.cost.memory import MIB, peak_memory
from nrg_sampler.cost.step import Step

WARMUP = 2


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


def measure_step(step: Step, n: int, device: torch.device) -> Timed:
    """Time pairs of steps, and on a GPU measure their peaks of memory too."""
    timed = time_step(step, n, device)
    return replace(timed, peaks=_peaks(step, device)) if device.type == "cuda" else timed


def weigh_step(build: Callable[[], Step], device: torch.device) -> tuple[int, int] | None:
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
