"""Axes and their statistics as the config of a saved model holds them."""

from __future__ import annotations

from typing import Any


class ConfiguredAxes:
    """A model with ``axes``, and ``mean`` and ``std`` or ``None``, in its config."""

    config: Any

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(self.config.axes)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each raw axis over the base model's samples; 0 where none is stored."""
        return tuple(self.config.mean or (0.0,) * len(self.axes))

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each there; 1 where none is stored."""
        return tuple(self.config.std or (1.0,) * len(self.axes))
