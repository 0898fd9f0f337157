"""Look-ahead guidance as a recipe has it: who scores the samples, or what was said of some that are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nrg_sampler import entries as kinds
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.judges.base import Judge
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.lookahead import Lookahead

REWARD = "reward"
PICKED = {"seeds": kinds.SEED.listed(), "scores": kinds.NUMBER.listed(), "before": kinds.OBJECT.or_none()}


@dataclass(frozen=True)
class Ahead:
    """Which samples pull a clip.

    Args:
        judge: Who scores few-step samples: ``"reward"``, or a judge's name; ``None`` where scores are given.
        settings: The settings.
        seeds: Of the samples whose scores are given. They have all steps, and the recipe but for this.
        scores: Of each.
        before: What pulled those samples, if anything did.

    Raises:
        ValueError: If there is neither a judge nor a score for each seed.
    """

    judge: str | None = REWARD
    settings: Lookahead = field(default_factory=Lookahead)
    seeds: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    before: Ahead | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "scores"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if (self.judge is None) != bool(self.seeds) or len(self.seeds) != len(self.scores):
            raise ValueError(
                f"Expected a judge of look-ahead samples, or seeds with a score each, but got {self.judge!r}, "
                f"{len(self.seeds)} seeds and {len(self.scores)} scores; give one of the two."
            )

    @classmethod
    def parse(cls, text: str) -> Ahead:
        """Read a judge and, after it, settings, such as ``"pixel samples=4 scale=2"``.

        Raises:
            ValueError: If a setting is unknown or out of range.
        """
        judge, *words = text.split() or [""]
        known = settings_of(Lookahead)
        given = dict(word.partition("=")[::2] for word in words)
        if not judge or "=" in judge or given.keys() - known.keys():
            raise ValueError(
                f"Expected who scores the look-ahead samples and settings, as 'reward' or 'pixel samples=4 scale=2' "
                f"({', '.join(known)}), but got {text!r}."
            )
        return cls(judge, Lookahead(**{name: known[name].read(value) for name, value in given.items()}))

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any]) -> Ahead:
        """Read what ``to_entries`` returned.

        Raises:
            ValueError: If an entry is missing, unknown or of another kind.
        """
        own = {"judge", *PICKED}
        settings = {name: value for name, value in entries.items() if name not in own}
        odd = (own - entries.keys()) | (settings.keys() ^ settings_of(Lookahead).keys())
        if odd:
            raise ValueError(
                f"Expected the look-ahead settings of this version, but got others: {', '.join(sorted(odd))}."
            )
        kinds.require(entries, {"judge": kinds.TEXT.or_none(), **PICKED}, " of the look-ahead")
        before = None if entries["before"] is None else cls.from_entries(entries["before"])
        return cls(entries["judge"], Lookahead(**settings), entries["seeds"], entries["scores"], before)

    def to_entries(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        picked = {"seeds": list(self.seeds), "scores": list(self.scores)}
        before = None if self.before is None else self.before.to_entries()
        return {"judge": self.judge, **picked, "before": before, **self.settings.to_dict()}

    def weighed(self, weights: Any) -> Ahead:
        """Return the same with the weights of the guidance, if the reward scores and no others are given."""
        open_weights = self.judge == REWARD and self.settings.to_dict()["weights"] is None
        return replace(self, settings=replace(self.settings, weights=weights)) if open_weights else self

    def load_judge(self, recipe: Any, reward: Any) -> Judge | None:
        """Return the judge of the samples; ``None`` where the reward scores or scores are given.

        Args:
            recipe: Whose device and model it is for.
            reward: The reward of the pipeline.

        Raises:
            ValueError: If there is none.
        """
        if self.judge not in (None, REWARD):
            return load_judge(self.judge, recipe.device)
        if self.judge == REWARD and reward is None:
            raise ValueError(
                f"Expected a reward to score look-ahead samples, but {recipe.model!r} comes without one; name its "
                "folder with --reward, or a judge instead of it."
            )
        return None
