"""``nrg-sampler evaluate`` on the bundled model, from the command to the files."""

from __future__ import annotations

import csv
import json

import pytest

from nrg_sampler.checkpoints import load_reward
from nrg_sampler.cli import main
from nrg_sampler.manifest import model_fingerprint

SMALL = ["--n", "2", "--steps", "2", "--batch", "2", "--split", "validation", "--dtype", "bfloat16"]


def evaluate(*options, out):
    return main(["evaluate", *options, "--out", str(out)])


def test_a_suite_writes_csv_json_table_and_plot_and_goes_on_where_it_stopped(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arms = ["--arms", "1:1:1", "0.5:0.5:0 floor TA"]
    assert evaluate("--suite", "weights", *SMALL, *arms, "--json", out=tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["suite"], printed["n"], printed["judge"]) == ("weights", 2, "oracle")
    assert {"arm", "weights", "axis", "win", "low", "high", "k"} <= printed["rows"][0].keys()
    assert {row["arm"] for row in printed["rows"]} == {"1:1:1", "0.5:0.5:0 floor TA"}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"weights-validation.{kind}" for kind in ("csv", "json", "md", "png", "settings.json")]
    assert json.loads((tmp_path / "weights-validation.json").read_text()) == printed
    with open(tmp_path / "weights-validation.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 2 and all(row["target_TA"] and row["motion"] and row["evaluations"] == "4" for row in rows)

    assert evaluate("--suite", "weights", *SMALL, *arms, out=tmp_path) == 0
    assert "2 steps, bfloat16, graded by the oracle" in capsys.readouterr().out
    with open(tmp_path / "weights-validation.csv") as stream:
        assert list(csv.DictReader(stream)) == rows

    assert evaluate("--suite", "weights", *SMALL, "--floor", "TA", out=tmp_path) == 2
    assert "name another folder with --out" in capsys.readouterr().err


def test_rivals_and_what_cannot_be_sampled_here(tmp_path, capsys):
    arms = ["--arms", "best of 2", "resampling", "skip-gradient", "random direction", "more steps x2"]
    assert evaluate("--suite", "rivals", *SMALL, *arms, out=tmp_path) == 0
    summary = json.loads((tmp_path / "rivals-validation.json").read_text())
    network = {arm["arm"]: arm["network"] for arm in summary["arms"]}
    assert network["best of 2"] == network["more steps x2"] == 2 and network["skip-gradient"] == 1
    assert 1 < network["resampling"] <= 6

    assert evaluate("--suite", "noise-aware", *SMALL, out=tmp_path) == 0
    printed = capsys.readouterr()
    assert "left out 'clean latents', 'clean latents, read at x0'" in printed.err
    assert "name the reward with --clean-reward" in printed.err


def test_another_reward_guides_and_has_a_table_of_its_own(tmp_path, capsys):
    reward = load_reward("shapes")
    reward.register_to_config(recommended_scale=0.5)
    reward.save_pretrained(tmp_path / "own")
    own = ["--reward", str(tmp_path / "own")]
    assert evaluate(*SMALL, "--arms", "1:1:1", *own, out=tmp_path / "table") == 0
    settings = json.loads((tmp_path / "table" / "weights-validation.settings.json").read_text())
    assert settings["reward"] == model_fingerprint(str(tmp_path / "own"))
    capsys.readouterr()
    assert evaluate(*SMALL, "--arms", "1:1:1", out=tmp_path / "table") == 2
    assert "name another folder with --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "Expected --n between 1 and"),
        (["--n", "99999"], "Expected --n between 1 and"),
        (["--n", "1", "--judges", "jury"], "Expected judges from oracle"),
        (["--n", "1", "--scale", "0", "--start", "2"], "Expected `start` to be between 0 and 1, but got 2.0."),
        (["--n", "1", "--arms", "best"], "Expected --arms from 'unguided', '1:1:1'"),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, capsys):
    assert evaluate(*options, out=tmp_path) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["weights", "rivals", "scale-sweep"])
def test_a_reduced_report_is_made_by_one_command(suite, tmp_path):
    options = ["--n", "40", "--steps", "12", "--split", "validation", "--dtype", "bfloat16", "--batch", "20"]
    assert evaluate("--suite", suite, *options, out=tmp_path) == 0
    summary = json.loads((tmp_path / f"{suite}-validation.json").read_text())
    assert summary["n"] == 40
    by_axis = {(row["arm"], row["axis"]): row for row in summary["rows"]}
    if suite == "weights":  # the sliders for picture and motion do what they say, and the other way round if flipped
        assert by_axis["1:0:0", "VQ"]["win"] > 50 > by_axis["1:0:0 flipped", "VQ"]["win"]
        assert by_axis["0:1:0", "MQ"]["win"] > 50 > by_axis["0:1:0 flipped", "MQ"]["win"]
    if suite == "rivals":
        assert by_axis["best of 4", "mean"]["target_gain"] > by_axis["best of 2", "mean"]["target_gain"] > 0
    if suite == "scale-sweep":
        gains = [by_axis[f"scale {scale}", "mean"]["target_gain"] for scale in ("0.25", "1", "4")]
        assert gains == sorted(gains)
        assert all(arm["diversity"] for arm in summary["arms"])
