"""Settings of a run that trains or evaluates a reward, checked when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.guidance.trust import PowersLike, powers_of, read_powers
from nrg_sampler.judges.base import Judge
from nrg_sampler.runs.device import AUTO
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.trainer import TrainerSettings

DTYPES = (AUTO, "float32", "bfloat16", "float16")
MIXED_PRECISIONS = (AUTO, "no", "bf16")
TRAJECTORIES = 0.85  # of the pairs, where they are kept; the rest are read clean, as finished clips are
TEXT_AXIS = "TA"  # sees the prompt where an axis of this name exists; else all axes do


@dataclass(frozen=True)
class EncodingSettings:
    """Which pipeline encodes clips and prompts, and how files become clips.

    Args:
        model: ``"shapes"`` (bundled), a folder or a Hub id of a Wan pipeline.
        height: Of the clips, in pixels; like the three below by default as the model was made for.
        width: Likewise.
        num_frames: Frames of a clip; shorter files cannot be used.
        fps: Frames a second to sample.
        dtype: Of the pipeline's weights, a name in ``DTYPES``; ``"auto"`` is bfloat16 where that is fast, else
            float32.
        cache: Folder for encoded clips; by default ``cache`` in the output folder of the run.

    Raises:
        ValueError: If the dtype is unknown or a number is not above 0.
    """

    model: str = BUNDLED
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    dtype: str = AUTO
    cache: Path | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.dtype not in DTYPES:
            raise ValueError(f"Expected `dtype` to be one of {', '.join(DTYPES)}, but got {self.dtype!r}.")
        for name, value in self.clip.items():
            if not value > 0:
                raise ValueError(f"Expected `{name}` to be above 0, but got {value}.")

    @property
    def clip(self) -> dict[str, Any]:
        """The size, length and frame rate that are set, by the names of ``ClipSettings``."""
        named = {name: getattr(self, name) for name in ("height", "width", "num_frames", "fps")}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class LabelledPairs:
    """Preference pairs of video files with labels, see :mod:`nrg_sampler.training.preferences`.

    Args:
        file: The CSV file.
        axes: Columns that are axes; by default those of ``VQ``, ``MQ`` and ``TA`` with labels, else all with scores.
        videos: Folder that relative paths start from; the file's own by default.
        fraction: Share of the pairs to train on, of those not held out.
        strict: Stop at rows that cannot be used, and at columns that may be meant as axes.

    Raises:
        ValueError: If the fraction is not from 0 to 1.
    """

    file: Path
    axes: tuple[str, ...] | None = None
    videos: Path | None = None
    fraction: float = 1.0
    strict: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check_share("fraction", self.fraction)


@dataclass(frozen=True)
class TeacherClips:
    """Clips that a teacher scores in place of human labels: video files, samples of the model, or both.

    Args:
        teacher: A judge by name, as ``"pixel"`` or ``"module:FILE.py:NAME"``, or a callable with named ``axes``, see
            :class:`~nrg_sampler.judges.base.Judge`.
        files: A CSV file with the columns ``path`` and ``prompt``, or a folder of videos with their prompts.
        videos: Folder that relative paths in the CSV file start from; the file's own by default.
        prompts: Prompts to sample clips of: a sequence of texts, or the name of a text file with one a line, or of a
            split of the bundled world (``"shapes"``, ``"shapes:validation"``, ``"shapes:test"``).
        num_clips: How many clips to sample.
        clips_per_prompt: How many of them for each prompt.
        sampling_steps: Step counts to draw from; by default shares of what the model was made for.
        guidance_scales: Scales of classifier-free guidance to draw from; likewise.
        other_prompts: Under how many prompts of other clips each clip is scored besides its own.
        batch: Clips sampled and scored together.
        seed: Of the first sample.
        identity: Unique for a callable, such as its name and version; the scores are cached under it.
        strict: Stop at files that cannot be used or are passed over instead of leaving them out.
        levels: Noise levels at which latents and velocity of the sampler's own way to each clip are kept, as
            ``nrg_sampler.training.along.LEVELS``; clips are sampled as the model was made for by default then.

    Raises:
        ValueError: If there are no clips, a number is too small, a callable has no identity, or levels are not those
            of samples.
    """

    teacher: str | Judge
    files: Path | None = None
    videos: Path | None = None
    prompts: str | Path | Sequence[str] | None = None
    num_clips: int = 1000
    clips_per_prompt: int = 4
    sampling_steps: tuple[int, ...] | None = None
    guidance_scales: tuple[float, ...] | None = None
    other_prompts: int = 3
    batch: int = 4
    seed: int = 0
    identity: str | None = None
    strict: bool = False
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.levels and self.files is not None:
            raise ValueError(
                "Expected samples of the model for `levels`, but got video files, whose way there nobody knows; leave "
                "the files out, or the levels."
            )
        if not all(0 < level < 1 for level in self.levels) or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"Expected `levels` to be different noise levels above 0 and below 1, but got {self.levels}."
            )
        if self.files is None and self.prompts is None:
            raise ValueError(
                "Expected clips for the teacher, but got none; give a CSV file or a folder of videos, or prompts to "
                "sample with."
            )
        for name, least in (
            ("num_clips", 1),
            ("clips_per_prompt", 1),
            ("other_prompts", 0),
            ("batch", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"Expected `{name}` to be at least {least}, but got {getattr(self, name)}.")
        if not isinstance(self.teacher, str) and self.identity is None:
            raise ValueError(
                "Expected `identity` beside a teacher that is a callable, but got none; name it, as 'sharpness 1'."
            )

    @property
    def teacher_name(self) -> str:
        """What a model card calls the teacher."""
        return self.teacher.partition(":")[0] if isinstance(self.teacher, str) else str(self.identity)


DataSettings: TypeAlias = LabelledPairs | TeacherClips


@dataclass(frozen=True)
class Recommendation:
    """What the trained reward recommends to its users, one number or one for each axis (``"VQ=40,TA=160"``).

    Args:
        scale: The default guidance strength, above 0.
        damping: Powers of ``1 - sigma`` on its gradients.
        fading: Powers of ``sigma`` on its gradients.

    Raises:
        ValueError: If a number does not parse or is negative.
    """

    scale: PowersLike = None
    damping: PowersLike = None
    fading: PowersLike = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            read_powers(f"recommended_{name}", value)

    def reward_options(self, axes: Sequence[str]) -> dict[str, list[float]]:
        """Return the options of ``LatentReward.from_transformer``, one number for each axis.

        Raises:
            ValueError: If the numbers do not fit the axes, or a scale is 0.
        """
        options = {
            f"recommended_{name}": list(powers_of(f"recommended_{name}", value, axes, ()))
            for name, value in vars(self).items()
            if value is not None
        }
        if min(options.get("recommended_scale", [1.0])) <= 0:
            raise ValueError(
                f"Expected `recommended_scale` above 0 for each axis, but got {self.scale}; name every axis."
            )
        return options


@dataclass(frozen=True)
class RewardTraining:
    """A run that trains a reward.

    Args:
        data: What it is trained on: labelled pairs, or clips that a teacher scores.
        out: Output folder: the reward goes to ``out/reward``, checkpoints and the log beside it.
        encoding: How clips and prompts are encoded.
        objective: What the reward learns; by default :func:`objective_for` the data.
        trainer: Steps, batch and learning rates.
        hold_out: Share of the pairs, or of the teacher's prompts, to test on.
        text_axes: Axes that see the prompt; by default ``TA``, or all where there is no ``TA``.
        recommended: What the reward recommends to its users.
        description: What the pairs are, for the model card.
        license: Of the reward, for the model card.
        cpu: Use no accelerator.
        mixed_precision: ``"bf16"`` trains under bfloat16 autocast, ``"no"`` in float32; ``"auto"`` is the first where
            that is fast. A continued run keeps the precision that it has.
        accumulate: Parts that a batch is processed in, one after the other.
        tensorboard: Log to ``out/tensorboard`` as well.

    Raises:
        ValueError: If a setting is out of range.
    """

    data: DataSettings
    out: Path
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    objective: Objective | None = None
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    hold_out: float = 0.1
    text_axes: tuple[str, ...] | None = None
    recommended: Recommendation = field(default_factory=Recommendation)
    description: str | None = None
    license: str = "other"
    cpu: bool = False
    mixed_precision: str = AUTO
    accumulate: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        check_share("hold_out", self.hold_out)
        if self.mixed_precision not in MIXED_PRECISIONS:
            raise ValueError(
                f"Expected `mixed_precision` to be one of {', '.join(MIXED_PRECISIONS)}, but got "
                f"{self.mixed_precision!r}."
            )
        if self.accumulate < 1:
            raise ValueError(f"Expected `accumulate` to be at least 1, but got {self.accumulate}.")
        levels = self.data.levels if isinstance(self.data, TeacherClips) else ()
        if self.chosen_objective.trajectories and not levels:
            raise ValueError(
                "Expected `levels` of the teacher's clips for an objective with `trajectories`, but no steps of the "
                "sampler are kept; set them, or leave `trajectories` at 0."
            )

    @property
    def chosen_objective(self) -> Objective:
        """Return the objective that was given, or that for the data."""
        return self.objective or objective_for(self.data)

    def axes_with_text(self, axes: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of ``axes`` that see the prompt."""
        if self.text_axes is not None:
            return self.text_axes
        return (TEXT_AXIS,) if TEXT_AXIS in axes else axes


@dataclass(frozen=True)
class RewardEvaluation:
    """A run that measures how often rewards agree with preferences.

    Args:
        rewards: Folders or Hub ids, with the same axes; several draw accuracy against training pairs.
        data: What they are compared with: labelled pairs, or clips that a teacher scores.
        out: Folder for figures, table and plots.
        encoding: How clips and prompts are encoded; by default as the first reward was trained.
        held_out: Only the pairs that a training with this ``hold_out`` left out.
        seed: Of noise and noise levels.
        cpu: Use no accelerator.

    Raises:
        ValueError: If there is no reward or a share is not from 0 to 1.
    """

    rewards: tuple[str | Path, ...]
    data: DataSettings
    out: Path
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    held_out: float | None = None
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.rewards:
            raise ValueError("Expected at least one reward to evaluate, but got none; name its folder.")
        if self.held_out is not None:
            check_share("held_out", self.held_out)


def objective_for(data: DataSettings, choices: Mapping[str, Any] | None = None) -> Objective:
    """Return the objective for some data: regression onto a teacher's scores, the default loss for labels.

    Of clips whose trajectories are kept most pairs are read along these, with what the velocity predicts.

    Args:
        data: What a reward is trained on.
        choices: Fields of the objective that differ from the default.
    """
    default: dict[str, Any] = {"loss": "regression"} if isinstance(data, TeacherClips) else {}
    if isinstance(data, TeacherClips) and data.levels:
        default |= {"trajectories": TRAJECTORIES, "reads_prediction": True}
    return Objective(**{**default, **(choices or {})})


def check_share(name: str, value: float) -> None:
    """Check that a setting is a share.

    Raises:
        ValueError: If it is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"Expected `{name}` to be a share from 0 to 1, but got {value}.")
