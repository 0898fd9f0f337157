"""Time what a device does without making the host wait for it."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Time work on a device without waiting for it: CUDA events there, the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        event: Any = torch.cuda.Event
        self._events = [event(enable_timing=True), event(enable_timing=True)] if device.type == "cuda" else []
        self._seconds = 0.0
        self._start = time.perf_counter()
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        """Mark the end of the work."""
        self._seconds = time.perf_counter() - self._start
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Return the time between start and stop, waiting for the device if it is not there yet."""
        if not self._events:
            return self._seconds
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000
