"""The highest memory in use while something ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from mmap import mmap
from pathlib import Path

import torch

MIB = 2**20
PROBE = 32 * MIB


class Peak:
    """What :func:`peak_memory` measured.

    Args:
        mib: In MiB; ``None`` until it is known, or if this system does not tell.
    """

    def __init__(self) -> None:
        self.mib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak inside the block: of the device's memory on CUDA, else of the whole process where Linux tells."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.mib = torch.cuda.max_memory_allocated(device) / MIB
        return
    if not _kernel_tells_peaks():
        yield peak
        return
    _forget_peak()
    yield peak
    peak.mib = _peak_of_process()


@cache
def _kernel_tells_peaks() -> bool:
    """Whether the process's peak can be read and counted anew: sandboxes accept the request and ignore it."""
    try:
        _forget_peak()
        low = _peak_of_process()
        with mmap(-1, PROBE) as probe:
            probe.write(b"x" * PROBE)
        high = _peak_of_process()
        _forget_peak()
        again = _peak_of_process()
    except (OSError, StopIteration):  # another system, or not allowed
        return False
    return high - low > PROBE / MIB / 2 and high - again > PROBE / MIB / 2


def _forget_peak() -> None:
    """Ask the kernel to count the process's peak from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_of_process() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
