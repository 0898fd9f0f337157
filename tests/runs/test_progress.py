"""A run yields its progress and has its result at the end."""

from __future__ import annotations

import pytest

from nrg_sampler.runs.progress import Progress, Run


def steps():
    yield Progress("first", 1)
    yield Progress("second", 1, total=1, numbers={"loss": 0.5})
    return "result"


def test_the_result_is_there_once_the_run_has_ended():
    run = Run(steps())
    assert next(run) == Progress("first", 1)
    with pytest.raises(RuntimeError, match="Expected a run that has ended, but there is work left"):
        _ = run.result
    assert [progress.work for progress in run] == ["second"]
    assert run.result == "result"
    assert list(run) == []
    assert run.result == "result"


def test_finishing_does_all_that_is_left():
    assert Run(steps()).finish() == "result"


def test_a_result_may_be_none():
    run = Run(iter_of_none())
    assert run.finish() is None


def iter_of_none():
    yield Progress("only", 1)


def test_closing_stops_the_work():
    stopped = []

    def work():
        try:
            yield Progress("endless", 0)
        finally:
            stopped.append(True)

    run = Run(work())
    next(run)
    run.close()
    assert stopped == [True]
