"""Published rewards by name: one table, and a differentiable judge of frames for each entry."""

from __future__ import annotations

from nrg_sampler.rewards.named.loading import load_named
from nrg_sampler.rewards.named.table import TABLE, Entry

__all__ = ["TABLE", "Entry", "load_named"]
