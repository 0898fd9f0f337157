"""What guidance changed over several seeds, in numbers and as a picture."""

from __future__ import annotations

import numpy as np
import pytest

from nrg_sampler.runs.outcome import AxisChange, format_summary, mean_changes, summarise_changes, summary_entries
from nrg_sampler.runs.strip import MARGIN, WIDTH, compare_strip
from nrg_sampler.statistics import t_interval, t_quantile

CHANGES = [{"oracle": {"VQ": value, "TA": 0.0}} for value in (0.1, 0.2, -0.1, 0.2)]


def test_the_interval_of_four_seeds_is_student_s() -> None:
    # by hand: mean 0.1, standard deviation sqrt(0.02), t of 3 degrees of freedom 3.182446
    summary = summarise_changes(CHANGES)
    change = summary["oracle"]["VQ"]
    half = 3.182446 * (0.06 / 3) ** 0.5 / 2
    assert (change.mean, change.low, change.high) == pytest.approx((0.1, 0.1 - half, 0.1 + half), abs=1e-6)
    assert (change.rose, change.seeds) == (3, 4)
    assert format_summary(summary["oracle"]).startswith("VQ +0.100 [-0.125, +0.325] (3 of 4 rose) · TA +0.000 [")
    assert mean_changes(summary) == {"oracle": {"VQ": pytest.approx(0.1), "TA": 0.0}}
    assert summary_entries(summary)["oracle"]["TA"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "rose": 0, "seeds": 4}


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.3]) is None
    assert str(AxisChange.of([-0.0001])) == "+0.000"
    assert AxisChange.of([0.3]).low is None


def test_a_seed_without_a_score_of_an_axis_does_not_count_there() -> None:
    summary = summarise_changes([*CHANGES, {"oracle": {"TA": 0.0}}, {}])
    assert (summary["oracle"]["VQ"].seeds, summary["oracle"]["TA"].seeds) == (4, 5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 8, 31, 399])
def test_quantiles_of_student_s_t_match_scipy(degrees: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for probability in (0.5, 0.9, 0.975, 0.995):
        assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("shape", [(520, 1840), (976, 5872)], ids=["small", "large"])
def test_the_strip_shows_every_pair_with_its_lines(shape: tuple[int, int]) -> None:
    pair = np.full((*shape, 3), 90, dtype=np.uint8)
    sheet = compare_strip(
        "a prompt", [(pair, ["seed 0:  oracle  VQ +0.100"]), (pair, ["seed 1"])], ["mean of 2 seeds"]
    )
    grey = (sheet == 90).all(axis=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == MARGIN + WIDTH + 16
    assert grey.sum() == pytest.approx(2 * WIDTH * round(shape[0] * WIDTH / shape[1]), rel=0.01)
    rows = grey.any(axis=1).nonzero()[0]
    between = sheet[rows[0] : rows[-1]][~grey.any(axis=1)[rows[0] : rows[-1]]]
    assert between.min() == 0
    assert sheet[rows[-1] + 1 :].min() == 0
    assert sheet[:, :MARGIN].min() == 0  # the names of the rows


def test_a_long_prompt_is_cut() -> None:
    pair = np.zeros((20, 70, 3), dtype=np.uint8)
    short, long = (compare_strip(text, [(pair, [])]).shape[0] for text in ("a prompt", "many words " * 60))
    assert long - short == 21  # one line more
