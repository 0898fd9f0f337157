"""What an evaluation compares, on which prompts, graded by whom, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nrg_sampler.evaluation.arms import SUITES as MAKERS
from nrg_sampler.evaluation.arms import Arm, wanted_arms
from nrg_sampler.evaluation.panel import require_known
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards.weights import RewardWeights
from nrg_sampler.runs.device import ARITHMETIC, AUTO, dtype_name, require_device
from nrg_sampler.shapes.scenes import Prompt, prompts

SUITES = tuple(MAKERS)
SEARCHING = "rivals"  # the suite whose searches choose by the weights
SPLITS = ("validation", "test")
PRESET = "best"  # of the arms, which differ from it in what they are named after
EQUAL = "1:1:1"


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of :func:`nrg_sampler.evaluation.run.evaluate`.

    Args:
        suites: Names of the tables to make, of ``SUITES``.
        n: Held-out prompts, one seed each.
        split: ``"test"``, or ``"validation"`` for tuning.
        arms: Besides the unguided arm, only these of a single suite: names or weights, with settings as in
            ``"1:1:1 scale=2 max_push=0.2"``; ``None`` for all.
        judges: Who grades, as :func:`nrg_sampler.judges.loading.load_judge` names them; ``None`` for the oracle, and
            the bundled pixel judge if there is one.
        reward: The reward that guides, by a name, folder or Hub id, as :func:`~nrg_sampler.rewards.by_name.reward_for`
            takes it; ``None`` for the bundled one.
        clean_reward: Folder of a reward trained on clean latents; ``None`` leaves out the arms that need one.
        steps: Denoising steps; ``None`` for the model's.
        batch: Clips sampled together.
        dtype: Of the arithmetic: ``"float32"``, ``"bfloat16"``, or ``"auto"`` for what is fast on the device.
        device: A torch device.
        out: Folder for CSV, JSON, tables and plots; an evaluation that was interrupted goes on there.
        guidance: The default guidance of the arms; weights that are left open are equal.

    Raises:
        ValueError: If a setting is out of range, an arm or judge is unknown, or the device is absent.
    """

    suites: Sequence[str] = ("weights",)
    n: int = 100
    split: str = "test"
    arms: Sequence[str] | None = None
    judges: Sequence[str] | None = None
    reward: str | None = None
    clean_reward: str | Path | None = None
    steps: int | None = None
    batch: int = 20
    dtype: str = AUTO
    device: str = "cpu"
    out: str | Path = "evaluation"
    guidance: RewardGuidance = field(default_factory=lambda: RewardGuidance.preset(PRESET))

    def __post_init__(self) -> None:
        object.__setattr__(self, "suites", tuple(self.suites))
        object.__setattr__(self, "out", Path(self.out))
        if self.guidance.axis_weights == RewardWeights():
            object.__setattr__(self, "guidance", replace(self.guidance, weights=EQUAL))
        unknown = [name for name in self.suites if name not in SUITES]
        if unknown or not self.suites:
            raise ValueError(f"Expected suites from {', '.join(SUITES)}, but got {', '.join(unknown) or 'none'}.")
        if self.split not in SPLITS:
            raise ValueError(f"Expected `split` to be {' or '.join(SPLITS)}, but got {self.split!r}.")
        most = len(prompts(self.split))
        if not 1 <= self.n <= most:
            raise ValueError(f"Expected `n` between 1 and {most}, the prompts of that split, but got {self.n}.")
        for name in ("batch", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` to be 1 or more, but got {value}.")
        if self.dtype not in ARITHMETIC:
            raise ValueError(f"Expected `dtype` from {', '.join(ARITHMETIC)}, but got {self.dtype!r}.")
        require_device(self.device)
        self._check_arms()
        if self.judges is not None:
            require_known(self.judges)

    def _check_arms(self) -> None:
        if self.arms and len(self.suites) > 1:
            raise ValueError(
                f"Expected `arms` with one suite, but got them with {', '.join(self.suites)}; name the suite."
            )
        if SEARCHING in self.suites and self.guidance.axis_weights.auto:
            raise ValueError(
                f"Expected weights as numbers for the suite {SEARCHING}, whose searches choose by them, but got 'auto'"
                "; name another suite, or weights such as 1:1:1."
            )
        for suite in self.suites:
            self.arms_of(suite)

    def arms_of(self, suite: str) -> list[Arm]:
        """Return what a suite compares."""
        every = MAKERS[suite](self.guidance)
        return wanted_arms(every, self.arms, self.guidance) if self.arms else every

    def chosen_prompts(self) -> list[Prompt]:
        """Return the prompts; prompt ``i`` has seed ``i`` in every arm."""
        return prompts(self.split)[: self.n]

    @property
    def arithmetic(self) -> str:
        """Name of the dtype of the arithmetic, never ``"auto"``."""
        return dtype_name(self.dtype, self.device)

    @property
    def pixel_folder(self) -> str | None:
        """The folder that ``judges`` names for the pixel judge; ``None`` for the bundled one."""
        named = (name.partition(":") for name in self.judges or ())
        return next((folder for kind, _, folder in named if kind == "pixel" and folder), None)

    def about(self) -> dict[str, Any]:
        """Return the settings that a summary carries, as plain JSON values."""
        entries = {"split": self.split, "steps": self.steps, "dtype": self.arithmetic, "device": self.device}
        return {**entries, "guidance": self.guidance.to_dict()}
