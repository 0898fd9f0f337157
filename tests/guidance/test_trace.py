"""What the trace records and says."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from nrg_sampler import GuidanceTrace, GuidanceWarning
from nrg_sampler.guidance.stopwatch import Stopwatch
from nrg_sampler.guidance.trace import PER_SAMPLE, Measurement
from nrg_sampler.judges.alarm import hacking_alarm


def measurement(**changes):
    values = {
        "reward": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "factor": torch.ones(2),
        "grad_norm": torch.tensor([1.0, 3.0]),
        "velocity_norm": torch.tensor([10.0, 20.0]),
        "coefficient": torch.tensor([4.0, 4.0]),
        "push_ratio": torch.tensor([0.1, 0.3]),
        "clamped": torch.tensor([False, False]),
        "capped": torch.tensor([False, True]),
        "finite": torch.tensor([True, True]),
        "floored": torch.tensor([False, False]),
        "stopwatch": Stopwatch(torch.device("cpu")),
    }
    return Measurement(**{**values, **changes})


@pytest.fixture
def trace() -> GuidanceTrace:
    trace = GuidanceTrace(("VQ", "TA"))
    trace.record(0, 1.0, skipped="sigma")
    trace.record(1, 0.8, measurement=measurement())
    return trace


def test_rows_average_over_the_batch(trace):
    skipped, guided = trace.rows()
    assert skipped == {"run": 0, "step_index": 0, "sigma": 1.0, "skipped": "sigma"}
    assert guided["reward"] == {"VQ": 2.0, "TA": 3.0}
    assert (guided["grad_norm"], guided["capped"], guided["skipped"]) == (2.0, 0.5, None)


def test_rows_per_sample_keep_every_number(trace):
    _, first, second = trace.rows(per_sample=True)
    assert (first["sample"], second["sample"]) == (0, 1)
    assert first["reward"] == {"VQ": 1.0, "TA": 2.0}
    assert second["reward"] == {"VQ": 3.0, "TA": 4.0}
    assert (first["capped"], second["capped"]) == (False, True)


def test_rows_of_samples_at_different_sigmas():
    trace = GuidanceTrace(("VQ", "TA"))
    trace.record(None, torch.tensor([0.2, 0.6]), measurement=measurement())
    trace.record(None, torch.tensor([0.1, 0.5]), measurement=measurement())
    assert [row["sigma"] for row in trace.rows(per_sample=True)] == pytest.approx([0.2, 0.6, 0.1, 0.5])
    assert [row["step_index"] for row in trace.rows()] == [0, 1]


def test_json_is_strict_and_complete():
    trace = GuidanceTrace(("VQ", "TA"))
    trace.record(0, 0.5, measurement=measurement(grad_norm=torch.tensor([torch.nan, torch.inf])))
    content = json.loads(trace.to_json(), parse_constant=pytest.fail)
    assert content["axes"] == ["VQ", "TA"]
    assert [row["grad_norm"] for row in content["steps"]] == [None, None]
    assert content["summary"]["guided"] == 1


def test_the_summary_counts_steps(trace):
    summary = trace.summary()
    assert summary.pop("seconds") >= 0
    assert summary == {"steps": 2, "guided": 1, "clamped": 0, "capped": 1, "not_finite": 0}


def test_printing_shows_a_line_per_step(trace):
    lines = str(trace).splitlines()
    assert lines[0].split() == ["step", "sigma", "VQ", "TA", "|grad|", "coefficient", "push", "ms", "note"]
    assert lines[1].split() == ["0", "1.000", "skipped:", "sigma"]
    assert lines[2].split()[:7] == ["1", "0.800", "2.000", "3.000", "2", "4", "20.0%"]
    assert lines[2].endswith("capped")
    assert str(GuidanceTrace(scale=0)) == "No guidance: the scale is 0."


def test_runs_are_counted(trace):
    trace.begin_run()
    trace.record(0, 1.0, skipped="sigma")
    assert [row["run"] for row in trace.rows()] == [0, 0, 1]


def test_recording_does_not_read_the_tensors():
    """On a meta device there is nothing to read, so any look at a number would raise."""
    names = ("reward", *PER_SAMPLE)
    on_meta = {name: torch.empty(2, 2, device="meta") for name in names}
    trace = GuidanceTrace(("VQ", "TA"))
    trace.record(0, torch.empty(2, device="meta"), measurement=measurement(**on_meta))
    with pytest.raises((NotImplementedError, RuntimeError)):
        trace.rows()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "Guidance had no effect: no denoising step passed through the scheduler"),
        (["window", "every"], "Guidance had no effect: no denoising step was within its window; widen"),
        (["sigma"], "Guidance had no effect: every step was at sigma 1, pure noise, or at 0, .* sample more steps"),
        (["sigma", "window"], "within its window, apart from those at sigma 1, .* sample more steps, widen `start`"),
        ([measurement(push_ratio=torch.tensor([0.0002, 0.0]))], "no effect: mean push 0.01 %; raise `scale`"),
        ([measurement(push_ratio=torch.full((2,), 0.003))], "which was 1, to about 30 for a push of 10 %"),
        (
            [measurement(push_ratio=torch.full((2,), 1e-4), capped=torch.tensor([True, True]))],
            "`max_push` held every step back, raise it",
        ),
        (
            [measurement(push_ratio=torch.full((2,), 1e-4), clamped=torch.tensor([True, True]))],
            "`max_coefficient` held every step back, raise it",
        ),
        ([measurement(push_ratio=torch.zeros(2))], "Guidance had no effect: the gradient was zero in every step"),
        ([measurement(finite=torch.tensor([True, False]))], "The reward's gradient was not finite in 1 of 1 guided"),
    ],
)
def test_what_went_wrong_is_said_once(steps, message):
    trace = GuidanceTrace(("VQ", "TA"))
    for index, step in enumerate(steps):
        arguments = {"skipped": step} if isinstance(step, str) else {"measurement": step}
        trace.record(index, 0.5, **arguments)
    with pytest.warns(GuidanceWarning, match=message) as caught:
        trace.warn()
    assert len(caught) == 1


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_nothing_is_said_when_guidance_worked_or_was_not_asked_for(trace, scale):
    trace.scale = scale
    if scale == 0:
        trace.steps.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace.warn()


@pytest.mark.parametrize(
    ("target", "oracle", "alarming"),
    [(0.5, -0.05, True), (0.5, 0.05, False), (-0.5, -0.05, False), (0.5, -0.001, False), (0.01, -0.05, False)],
)
def test_an_alarm_is_a_target_that_rises_while_a_judge_falls(trace, target, oracle, alarming):
    changes = {"reward": {"VQ": target, "TA": -9.0}, "oracle": {"VQ": oracle, "TA": 9.0}}
    alarm = hacking_alarm(changes, ["VQ"])  # TA has no weight
    assert (alarm is not None) == alarming
    trace.alarm = alarm
    assert json.loads(trace.to_json())["alarm"] == alarm
    assert ("rose by 0.50 on VQ while the oracle fell by 0.05" in str(trace)) == alarming


def test_without_a_judge_there_is_no_alarm():
    assert hacking_alarm({"reward": {"VQ": 1.0}}, ["VQ"]) is None
    assert hacking_alarm({}, ["VQ"]) is None
