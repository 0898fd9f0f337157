"""The highest memory in use while something ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

MIB = 2**20


class Peak:
    """What :func:`peak_memory` measured.

    Args:
        mib: In MiB; ``None`` until it is known, or if the system does not report it.
    """

    def __init__(self) -> None:
        self.mib: float | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the peak inside the block: of the device's memory on CUDA, else of the whole process (Linux only).

    A process also holds freed memory that its C library keeps for later, and using that again raises no peak: compare
    figures of young processes.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.mib = torch.cuda.max_memory_allocated(device) / MIB
        return
    counted = _reset_peak()
    yield peak
    peak.mib = _peak_of_process() if counted else None


def _reset_peak() -> bool:
    """Let the kernel count the process's peak anew; return whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system, or not allowed
        return False
    return True


def _peak_of_process() -> float | None:
    for line in Path("/proc/self/status").read_text(encoding="utf-8-sig").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None
