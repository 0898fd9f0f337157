"""What was measured of a reward over a model's own samples: its standard units, and how hard it has to push.

A small JSON file stands for the reward wherever one is named, with these numbers in place of the published ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nrg_sampler import entries as kinds
from nrg_sampler.json_text import read_object, to_json
from nrg_sampler.rewards.base import check_reward

SUFFIX = ".json"
ENTRIES = {
    "reward": kinds.TEXT,
    "model": kinds.TEXT,
    "axes": kinds.TEXT.listed(),
    "mean": kinds.NUMBER.listed(),
    "std": kinds.POSITIVE.listed(),
    "recommended_scale": kinds.POSITIVE,
    "share": kinds.POSITIVE,
    "frames": kinds.TEXT,
    "n": kinds.COUNT,
    "probes": kinds.COUNT,
}
ADVICE = "write it again with `nrg-sampler calibrate`"


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Args:
        reward: What the reward is called, as :func:`nrg_sampler.rewards.by_name.reward_for` reads it.
        model: Of whose samples.
        axes: Names of the axes.
        mean: Of each raw axis over unguided samples.
        std: Its standard deviation there.
        recommended_scale: The strength at which the push is ``share`` of the velocity.
        share: Norm of the push over that of the velocity, mean over the first third of the steps.
        frames: Which latent frames were looked at.
        n: How many samples ``mean`` and ``std`` are of.
        probes: How many the strength is of.
    """

    reward: str
    model: str
    axes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    recommended_scale: float
    share: float
    frames: str
    n: int
    probes: int

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Calibration:
        """Read a file that ``write`` wrote.

        Raises:
            ValueError: If it is damaged, or an entry is missing or of another kind.
        """
        values = read_object(Path(file), ADVICE, ENTRIES)
        kinds.require(values, ENTRIES, f" of {file}")
        lists = {name: tuple(values[name]) for name in ("axes", "mean", "std")}
        if len({len(values) for values in lists.values()}) > 1:
            raise ValueError(f"Expected one mean and deviation for each axis in {file}, but got others; {ADVICE}.")
        return cls(**{**{name: values[name] for name in ENTRIES}, **lists})

    def write(self, file: Path) -> None:
        """Write the file."""
        file.write_text(to_json(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def applied(self, reward: Any) -> Any:
        """Give a reward these numbers, and return it.

        Raises:
            ValueError: If it has other axes.
        """
        if tuple(reward.axes) != self.axes:
            raise ValueError(
                f"Expected a reward with the axes {', '.join(self.axes)}, as it was calibrated, but {self.reward} has "
                f"{', '.join(reward.axes)}; calibrate it again."
            )
        numbers: Mapping[str, Any] = {
            "mean": self.mean, "std": self.std, "recommended_scale": self.recommended_scale,
        }  # fmt: skip
        if hasattr(reward, "register_to_config"):  # a latent reward has them in its config
            reward.register_to_config(**numbers)
        else:
            for name, value in numbers.items():
                setattr(reward, name, value)
        check_reward(reward)
        return reward


def is_calibration(wanted: Any) -> bool:
    """Return whether a name is that of a file that :meth:`Calibration.write` wrote."""
    return isinstance(wanted, (str, os.PathLike)) and str(wanted).endswith(SUFFIX) and Path(wanted).is_file()
