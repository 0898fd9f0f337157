"""What the guidance did at each step, in numbers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nrg_sampler.guidance.push import Push
from nrg_sampler.guidance.stopwatch import Stopwatch
from nrg_sampler.json_text import to_json


class GuidanceWarning(UserWarning):
    """Guidance had no effect, or not in every step."""


@dataclass(frozen=True)
class Measurement(Push):
    """Numbers of one guided step, those of the push among them; they stay on the latents' device.

    Args:
        reward: Raw reward per axis, shape ``(B, axes)``.
        floored: Whether a floor changed the direction of the push, shape ``(B,)``.
        stopwatch: Time spent on the reward, its gradient and the push.
    """

    reward: Tensor
    floored: Tensor
    stopwatch: Stopwatch


# Below it the pixels of the bundled model change by less than one of 255 levels on average, which no file keeps.
NOTICEABLE_PUSH = 0.005
USUAL_PUSH = 0.1

PER_SAMPLE = ("grad_norm", "velocity_norm", "coefficient", "push_ratio", "clamped", "capped", "finite", "floored")


@dataclass(frozen=True)
class GuidanceStep:
    """One call of the scheduler: its place in the run, and either a measurement or the reason why there is none.

    Args:
        run: Number of the sampling run, counted from 0 since the trace began.
        step_index: Number of the denoising step within the run; both stages of a Heun step have the same.
        sigma: Noise level, 1 is pure noise: a number, or one per sample, shape ``(B,)``.
        skipped: Why the step was left alone: ``"sigma"``, ``"window"`` or ``"every"``; ``None`` if it was guided.
        measurement: The numbers of a guided step.
        reused: Whether the direction was that of an earlier step; so is then the reward.
    """

    run: int
    step_index: int
    sigma: float | Tensor
    skipped: str | None = None
    measurement: Measurement | None = None
    reused: bool = False


@dataclass
class GuidanceTrace:
    """Record a guided run step by step.

    Tensors stay on their device until ``rows``, ``to_json`` or ``print`` needs the numbers, so that recording makes
    no step wait.

    Args:
        axes: Names of the reward's axes.
        scale: The scale of the guidance; 0 is none.
        steps: One entry per call of the scheduler.
        alarm: What :func:`nrg_sampler.judges.alarm.hacking_alarm` says of the finished clip, set by whoever compares
            it.
        proposed: Weights of the axes that the reward proposed in the last guided step, shape ``(B, axes)``, if any.
    """

    axes: tuple[str, ...] = ()
    scale: float = 1.0
    steps: list[GuidanceStep] = field(default_factory=list)
    alarm: str | None = None
    proposed: Tensor | None = None
    _run: int = field(default=0, repr=False)

    def begin_run(self) -> None:
        """Count the steps that follow as a new sampling run."""
        self._run += bool(self.steps)

    def record(
        self,
        step_index: int | None,
        sigma: float | Tensor,
        skipped: str | None = None,
        measurement: Measurement | None = None,
        reused: bool = False,
    ) -> None:
        """Add a step; without a ``step_index`` it follows the last one."""
        if step_index is None:
            step_index = self.steps[-1].step_index + 1 if self.steps else 0
        self.steps.append(GuidanceStep(self._run, step_index, sigma, skipped, measurement, reused))

    def rows(self, per_sample: bool = False) -> list[dict[str, Any]]:
        """Return one dict per step, averaged over the batch, or one per step and sample.

        Keys: ``run``, ``step_index``, ``sample`` (with ``per_sample``), ``sigma``, ``skipped``, ``reward`` (a dict of
        raw values by axis), ``grad_norm``, ``velocity_norm``, ``coefficient``, ``push_ratio``, ``clamped``,
        ``capped``, ``finite``, ``floored`` (booleans per sample, fractions of the batch in an average), ``seconds``
        (of the whole batch) and ``reused``. A skipped step has only the first ones.
        """
        rows = []
        for step in self.steps:
            samples = self._samples(step)
            rows.extend(samples if per_sample else [_average(samples)])
        return rows

    def to_json(self, indent: int | None = None) -> str:
        """Return the trace as JSON: axes, scale, summary and the rows per sample; what is not finite becomes null."""
        content = {
            "axes": list(self.axes),
            "scale": self.scale,
            "proposed": None if self.proposed is None else [self._weights(row) for row in self.proposed.tolist()],
            "summary": self.summary(),
            "alarm": self.alarm,
            "steps": self.rows(per_sample=True),
        }
        return to_json(content, indent=indent)

    def summary(self) -> dict[str, Any]:
        """Return how many steps were seen, guided, clamped, capped and not finite, and the seconds they took.

        A step counts as clamped, capped or not finite if any of its samples was.
        """
        guided = [step.measurement for step in self.steps if step.measurement]
        return {
            "steps": len(self.steps),
            "guided": len(guided),
            "clamped": sum(bool(m.clamped.any()) for m in guided),
            "capped": sum(bool(m.capped.any()) for m in guided),
            "not_finite": sum(not bool(m.finite.all()) for m in guided),
            "seconds": sum(m.stopwatch.seconds() for m in guided),
        }

    def warn(self) -> None:
        """Warn, at most once each, of gradients that were not finite and of guidance that changed nothing."""
        if self.scale == 0 or self.warn_not_finite():
            return
        push = self.mean_push()
        if not push:
            warnings.warn(f"Guidance had no effect: {self._why_nothing()}", GuidanceWarning, stacklevel=3)
        elif push < NOTICEABLE_PUSH:
            message = f"Guidance had next to no effect: mean push {100 * push:.2g} %; {self._how_to_push_more(push)}"
            warnings.warn(message, GuidanceWarning, stacklevel=3)

    def mean_push(self) -> float:
        """Return the mean of ``push_ratio`` over the guided steps and their samples; 0 where none was guided."""
        pushes = [step.measurement.push_ratio.float().mean().item() for step in self.steps if step.measurement]
        return sum(pushes) / len(pushes) if pushes else 0.0

    def warn_not_finite(self) -> bool:
        """Warn of gradients that were not finite, and return whether there were any."""
        summary = self.summary()
        if summary["not_finite"]:
            message = (
                f"The reward's gradient was not finite in {summary['not_finite']} of {summary['guided']} guided "
                "steps; those were left unguided. Check the reward, or start guidance later with `start`."
            )
            warnings.warn(message, GuidanceWarning, stacklevel=3)
        return bool(summary["not_finite"])

    def _weights(self, proposed: Sequence[float]) -> dict[str, float]:
        return {axis: round(weight, 3) for axis, weight in zip(self.axes, proposed, strict=True)}

    def _why_nothing(self) -> str:
        if not self.steps:
            return "no denoising step passed through the scheduler; sample with the attached pipeline and scheduler."
        if not any(step.measurement for step in self.steps):
            reasons = {step.skipped for step in self.steps}
            if reasons == {"sigma"}:
                return "every step was at sigma 1, pure noise, or at 0, where nothing is guided; sample more steps."
            if "sigma" in reasons:
                return (
                    "no denoising step was within its window, apart from those at sigma 1, pure noise, where nothing "
                    "is guided; sample more steps, widen `start` and `stop` or lower `every`."
                )
            return "no denoising step was within its window; widen `start` and `stop` or lower `every`."
        return "the gradient was zero in every step; use a reward that depends on the latents."

    def _how_to_push_more(self, push: float) -> str:
        guided = [step.measurement for step in self.steps if step.measurement]
        for limit, held in (("max_push", "capped"), ("max_coefficient", "clamped")):
            if all(bool(getattr(measurement, held).all()) for measurement in guided):
                return f"`{limit}` held every step back, raise it."
        wanted = _round_number(self.scale * USUAL_PUSH / push)
        return f"raise `scale`, which was {self.scale:g}, to about {wanted} for a push of 10 %."

    def _samples(self, step: GuidanceStep) -> list[dict[str, Any]]:
        place = {"run": step.run, "step_index": step.step_index}
        sigma = _numbers(step.sigma)
        if step.measurement is None:
            return [{**place, "sample": i, "sigma": value, "skipped": step.skipped} for i, value in enumerate(sigma)]
        columns = {name: _numbers(getattr(step.measurement, name)) for name in PER_SAMPLE}
        rewards = step.measurement.reward.tolist()
        seconds = step.measurement.stopwatch.seconds()
        return [
            {
                **place,
                "sample": i,
                "sigma": sigma[i % len(sigma)],
                "skipped": None,
                "reward": dict(zip(self.axes, reward, strict=True)),
                **{name: values[i] for name, values in columns.items()},
                "seconds": seconds,
                "reused": step.reused,
            }
            for i, reward in enumerate(rewards)
        ]

    def __str__(self) -> str:
        if self.scale == 0:
            return "No guidance: the scale is 0."
        heads = ["step", "sigma", *self.axes, "|grad|", "coefficient", "push", "ms", "note"]
        table = _table([heads, *(self._line(row) for row in self.rows())])
        return table if self.alarm is None else f"{table}\n{self.alarm}"

    def _line(self, row: dict[str, Any]) -> list[str]:
        place = [str(row["step_index"]), f"{row['sigma']:.3f}"]
        if row["skipped"]:
            return [*place, *[""] * (len(self.axes) + 4), f"skipped: {row['skipped']}"]
        notes = [name for name in ("clamped", "capped", "floored", "reused") if row[name]]
        notes += ["not finite"] if row["finite"] < 1 else []
        return [
            *place,
            *(f"{value:.3f}" for value in row["reward"].values()),
            f"{row['grad_norm']:.3g}",
            f"{row['coefficient']:.3g}",
            f"{row['push_ratio']:.1%}",
            f"{1000 * row['seconds']:.0f}",
            ", ".join(notes),
        ]


def _numbers(values: float | Tensor) -> list[Any]:
    return values.flatten().tolist() if isinstance(values, Tensor) else [values]


def _round_number(value: float) -> str:
    """Write a number with one significant digit, as 6000 or 0.02."""
    return f"{float(f'{value:.0e}'):.15g}"


def _average(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row = {key: value for key, value in samples[0].items() if key != "sample"}
    for key in ("sigma", *PER_SAMPLE):
        if key in row:
            row[key] = sum(sample[key] for sample in samples) / len(samples)
    if "reward" in row:
        row["reward"] = {
            axis: sum(sample["reward"][axis] for sample in samples) / len(samples) for axis in row["reward"]
        }
    return row


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]).rstrip()
        for line in lines
    )
