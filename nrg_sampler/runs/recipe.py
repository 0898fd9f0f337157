"""What to sample: everything but the seed, from a command line, a page or the manifest of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from nrg_sampler import entries as kinds
from nrg_sampler.checkpoints import SAMPLING_ENTRIES
from nrg_sampler.guidance.settings import POWERS, RewardGuidance
from nrg_sampler.rewards import RewardWeights
from nrg_sampler.rewards.frames import EVERY
from nrg_sampler.rewards.gate import weights_for_prompt
from nrg_sampler.rewards.weights import AUTO
from nrg_sampler.runs.ahead import Ahead
from nrg_sampler.runs.device import DTYPES
from nrg_sampler.schedulers import SCHEDULERS
from nrg_sampler.search import Search

# What an entry was before manifests named it.
ABSENT: dict[str, Any] = {
    "scheduler": None,
    "search": None,
    "proposed": False,
    "checkpointing": False,
    "lookahead": None,
}
ABSENT_GUIDANCE: dict[str, Any] = {"every": 1, "reuse": False}
STRIDE = "frame_stride"  # what `frames` was before

ENTRIES = {
    "prompt": kinds.TEXT,
    "guidance": kinds.OBJECT,
    "sampling": kinds.OBJECT,
    "model": kinds.TEXT,
    "reward": kinds.TEXT.or_none(),
    "device": kinds.TEXT,
    "dtype": kinds.one_of(*DTYPES),
    "fps": kinds.POSITIVE.or_none(),
    "scheduler": kinds.one_of(*SCHEDULERS).or_none(),
    "search": kinds.OBJECT.or_none(),
    "proposed": kinds.SWITCH,
    "checkpointing": kinds.SWITCH,
    "lookahead": kinds.OBJECT.or_none(),
}


@dataclass(frozen=True)
class Recipe:
    """Everything but the seed.

    Args:
        prompt: What the video shows.
        guidance: How the reward acts.
        sampling: Arguments of the pipeline call; what is left out is the model's default.
        model: ``"shapes"``, a folder or a Hub id.
        reward: Folder or Hub id, or ``None`` for the reward that comes with the pipeline.
        device: A torch device.
        dtype: Name of the weights' dtype.
        fps: Frames per second of the file, or ``None`` for what the model was made for; a manifest always has it.
        scheduler: One of ``nrg_sampler.schedulers.SCHEDULERS``, or ``None`` for the model's own.
        search: Fields of :class:`nrg_sampler.search.Search`, or ``None`` to sample one candidate.
        proposed: Whether the reward has proposed the weights.
        checkpointing: Whether the reward saves memory, see :mod:`nrg_sampler.rewards.recompute`.
        lookahead: Which look-ahead samples pull the clip, if any do.
    """

    prompt: str
    guidance: RewardGuidance
    sampling: dict[str, Any]
    model: str
    reward: str | None
    device: str
    dtype: str
    fps: float | None
    scheduler: str | None = None
    search: dict[str, Any] | None = None
    proposed: bool = False
    checkpointing: bool = False
    lookahead: Ahead | None = None

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Recipe:
        """Read what ``to_entries`` returned, or the manifest of an earlier version.

        Raises:
            ValueError: If an entry is missing, too many or of another kind, or the settings of guidance or search are
                of another version.
        """
        wanted = {item.name for item in fields(cls)}
        entries = {**{name: item for name, item in ABSENT.items() if name in wanted}, **entries}
        if wanted != entries.keys():
            odd = ", ".join(sorted(wanted ^ entries.keys()))
            raise ValueError(f"Expected the entries of a recipe, but got some that are missing or unknown: {odd}.")
        kinds.require(entries, ENTRIES)
        sampling = entries["sampling"]
        kinds.require(sampling, {**dict.fromkeys(sampling, kinds.PLAIN), **SAMPLING_ENTRIES}, " of the sampling")
        try:
            guidance = RewardGuidance(**_renamed({**ABSENT_GUIDANCE, **entries["guidance"]}))
        except TypeError as error:
            raise ValueError(f"Expected the guidance settings of this version, but {error}.") from error
        try:
            Search(**entries["search"] or {})
        except TypeError as error:
            raise ValueError(f"Expected the search settings of this version, but {error}.") from error
        ahead = None if entries["lookahead"] is None else Ahead.from_entries(entries["lookahead"])
        return cls(**{**entries, "guidance": guidance, "lookahead": ahead})

    def to_entries(self) -> dict[str, Any]:
        """Return the recipe as JSON can hold it without rounding, so that a replay reads it back equal."""
        ahead = None if self.lookahead is None else self.lookahead.to_entries()
        return {**vars(self), "guidance": self.guidance_entries(), "lookahead": ahead}

    def settled(self, pipe: Any) -> Recipe:
        """Return the same with the weights that the pipeline's reward proposes where they are ``"auto"``.

        Raises:
            ValueError: If they are and the reward has no gate.
        """
        search = self.search or {}
        automatic = [RewardWeights.parse(weights).auto for weights in (self.guidance.weights, search.get("weights"))]
        automatic[0] = automatic[0] and self.guidance.scale != 0
        if not any(automatic) or pipe.reward_model is None:
            return self
        weights = weights_for_prompt(pipe, self.prompt)
        guidance = replace(self.guidance, weights=weights) if automatic[0] else self.guidance
        values = list(weights.values or ())
        return replace(
            self,
            guidance=guidance,
            search={**search, "weights": values} if automatic[1] else self.search,
            proposed=True,
        )

    def guidance_entries(self) -> dict[str, Any]:
        """Return the guidance as JSON can hold it without rounding, so that a replay reads it back equal."""
        guidance = self.guidance
        powers = {name: getattr(guidance, name) for name in POWERS}
        exact = {name: _exact(given) for name, given in powers.items() if isinstance(given, RewardWeights)}
        floor = None if guidance.floor is None else list(guidance.floor)
        return {**guidance.to_dict(), **exact, "weights": _exact(guidance.axis_weights), "floor": floor}


def _renamed(guidance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an earlier version under the names of this one."""
    if STRIDE not in guidance:
        return dict(guidance)
    others = {name: value for name, value in guidance.items() if name != STRIDE}
    return {"frames": f"{EVERY}{guidance[STRIDE]}", **others}


def _exact(weights: RewardWeights) -> Any:
    if weights.auto:
        return AUTO
    if weights.values is None or weights.names is None:
        return None if weights.values is None else list(weights.values)
    return dict(zip(weights.names, weights.values, strict=True))
