"""``nrg-sampler evaluate`` on the bundled model, from the command to the files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch

from nrg_sampler.cli import main
from nrg_sampler.rewards.loading import load_reward
from nrg_sampler.runs.manifest import model_fingerprint

HERE = str(Path(__file__).parents[1])
SMALL = ["--n", "2", "--steps", "2", "--batch", "2", "--split", "validation", "--dtype", "float32"]


def evaluate(*options, out):
    return main(["evaluate", *options, "--out", str(out)])


def rows_of(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_suite_writes_csv_json_table_and_plot_and_goes_on_where_it_stopped(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arms = ["--arms", "1:1:1", "0.5:0.5:0 floor TA", "1:1:1 scale=2 max_push=0.2"]
    asked = ["--suite", "weights", *SMALL, "--judges", "oracle", *arms]
    assert evaluate(*asked, "--json", out=tmp_path) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["suite"], printed["n"], printed["judge"]) == ("weights", 2, "oracle")
    assert (printed["split"], printed["steps"], printed["guidance"]["weights"]) == ("validation", 2, "1:1:1")
    assert {"arm", "weights", "axis", "win", "low", "high", "k"} <= printed["rows"][0].keys()
    assert {row["arm"] for row in printed["rows"]} == set(arms[1:])
    names = sorted(path.name for path in tmp_path.iterdir())
    suite = [f"weights-validation.{kind}" for kind in ("csv", "json", "md", "png")]
    assert names == ["clips-validation.csv", "clips-validation.settings.json", *suite]
    assert json.loads((tmp_path / "weights-validation.json").read_text()) == printed
    rows = rows_of(tmp_path / "weights-validation.csv")
    assert len(rows) == 4 * 2
    assert all(row["target_TA"] and row["motion"] and row["evaluations"] == "4" for row in rows)

    # by hand: the win rate and the gain of one cell
    of = {(row["arm"], row["index"]): float(row["VQ"]) for row in rows}
    change = [of["1:1:1", i] - of["unguided", i] for i in "01"]
    cell = next(row for row in printed["rows"] if (row["arm"], row["axis"]) == ("1:1:1", "VQ"))
    assert cell["win"] == 50 * sum(1.0 if value > 0 else 0.5 if value == 0 else 0.0 for value in change)
    spread = abs(of["unguided", "0"] - of["unguided", "1"]) / 2**0.5
    assert cell["gain"] == pytest.approx(sum(change) / 2 / spread, rel=1e-2, abs=1e-3)

    (tmp_path / "weights-validation.csv").unlink()
    before = (tmp_path / "clips-validation.csv").read_text()
    assert evaluate(*asked, out=tmp_path) == 0
    assert "2 steps, float32, graded by the oracle" in capsys.readouterr().out
    assert (tmp_path / "clips-validation.csv").read_text() == before  # nothing was sampled again
    assert rows_of(tmp_path / "weights-validation.csv") == rows

    assert evaluate("--suite", "weights", *SMALL, "--judges", "oracle", "--steps", "3", out=tmp_path) == 2
    assert "Expected clips sampled with steps 2, as those in" in (said := capsys.readouterr().err)
    assert "but got steps 3; name another folder as `out`" in said


@pytest.fixture
def judge(tmp_path):
    """A pixel judge with random weights."""
    from nrg_sampler.shapes.judge import PixelJudge
    from nrg_sampler.shapes.scenes import vocabulary

    torch.manual_seed(0)
    judge = PixelJudge(words=vocabulary(), widths=(8, 8), dim=16, num_heads=2, depth=1)
    judge.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


@pytest.mark.filterwarnings("ignore:Guidance had no effect")  # in every second one of two steps
def test_one_command_makes_the_whole_report(tmp_path, capsys, judge, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("nrg_sampler.evaluation.run.DIVERSITY_SEEDS", 2)
    out = tmp_path / "out"
    assert evaluate("--suite", "all", *SMALL, "--judges", f"oracle,pixel:{judge}", out=out) == 0
    said = capsys.readouterr().err
    settings = ("", ", paper", ", paper to the letter", ", first half")
    assert "noise-aware: Left out " + ", ".join(f"'clean latents{name}'" for name in settings) in said
    assert "made by `python -m nrg_sampler.shapes.train clean-reward` and named with --clean-reward FOLDER" in said
    report = (out / "report.md").read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", report)
    suites = ("weights", "noise-aware", "rivals", "scale-sweep")
    assert pictures == [f"{s}-validation{j}.png" for s in suites for j in ("", "-pixel")] + ["worst-validation.png"]
    assert all((out / name).stat().st_size > 5000 for name in pictures)
    assert report.count("By the oracle, 2 prompts:") == report.count("By the pixel judge, 2 prompts:") == 4
    assert "| best of 4, pixel judge chooses † |" in report
    assert "| pixels through x0 † |" in report
    assert "By the oracle the gain is largest at scale" in report
    assert "- prompts: 2 of the validation split" in report

    summary = json.loads((out / "rivals-validation.json").read_text())
    network = {arm["arm"]: arm["network"] for arm in summary["arms"]}
    assert network["best of 2"] == network["more steps x2"] == network["guided, best of 2"] == 2
    assert network["best of 4"] == 4
    assert network["skip-gradient"] == 1
    assert 1 < network["resampling"] <= 6
    diversity = {
        arm["arm"]: arm["diversity"] for arm in json.loads((out / "scale-sweep-validation.json").read_text())["arms"]
    }
    assert all(diversity.values())
    # what arms and suites have in common was sampled once
    clips = [(row["arm"], row["seed"]) for row in rows_of(out / "clips-validation.csv")]
    assert len(clips) == len(set(clips))
    guided = [{row["VQ"] for row in rows_of(out / f"{suite}-validation.csv") if row["arm"] == arm}
              for suite, arm in (("weights", "1:1:1"), ("rivals", "guided"), ("scale-sweep", "scale 1"))]  # fmt: skip
    assert guided[0] == guided[1] == guided[2]


def test_without_a_pixel_judge_the_oracle_grades_alone(tmp_path, capsys, monkeypatch):
    from nrg_sampler import checkpoints

    def bundled_folder(part):
        return found("absent" if part == "judge" else part)

    found = checkpoints.bundled_folder
    monkeypatch.setattr(checkpoints, "bundled_folder", bundled_folder)
    arms = ["--arms", "best of 2, pixel judge chooses", "more steps x1.4"]
    assert evaluate("--suite", "rivals", *SMALL, *arms, out=tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "graded by the oracle alone: Expected the bundled model in" in said
    assert "Left out 'best of 2, pixel judge chooses', which need the pixel judge" in said
    assert evaluate("--suite", "rivals", *SMALL, *arms, "--judges", "pixel", out=tmp_path / "other") == 2
    assert "Expected the bundled model in" in capsys.readouterr().err


def test_another_reward_guides_and_has_a_table_of_its_own(tmp_path, capsys):
    reward = load_reward("shapes")
    reward.register_to_config(recommended_scale=0.5)
    reward.save_pretrained(tmp_path / "own")
    own = ["--reward", str(tmp_path / "own")]
    assert evaluate(*SMALL, "--arms", "1:1:1", *own, out=tmp_path / "table") == 0
    settings = json.loads((tmp_path / "table" / "clips-validation.settings.json").read_text())
    assert settings["reward"] == model_fingerprint(str(tmp_path / "own"))
    capsys.readouterr()
    assert evaluate(*SMALL, "--arms", "1:1:1", out=tmp_path / "table") == 2
    assert "name another folder as `out`" in capsys.readouterr().err


def test_rewards_that_are_compared_are_trusted_alike(tmp_path):
    """The bundled reward under another name, with other recommendations, has to sample the same clips."""
    reward = load_reward("shapes")
    reward.register_to_config(recommended_scale=0.5, recommended_damping=None, recommended_fading=None)
    reward.save_pretrained(tmp_path / "clean")
    arms = ["--arms", "noised latents", "clean latents", "--clean-reward", str(tmp_path / "clean")]
    # In two steps motion is not pushed at all: the first is pure noise, the second hardly any.
    assert evaluate("--suite", "noise-aware", *SMALL, "--steps", "3", *arms, out=tmp_path / "table") == 0
    with open(tmp_path / "table" / "noise-aware-validation.csv", newline="") as file:
        grades = {
            (row["arm"], row["index"]): [row[axis] for axis in ("VQ", "MQ", "TA")] for row in csv.DictReader(file)
        }
    arms_of = {arm: [grades[key] for key in sorted(grades) if key[0] == arm] for arm, _ in grades}
    assert arms_of["clean latents"] == arms_of["noised latents"] != arms_of["unguided"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "0"], "Expected `n` between 1 and"),
        (["--n", "99999"], "Expected `n` between 1 and"),
        (["--n", "1", "--judges", "jury"], "Expected judges from oracle"),
        (["--n", "1", "--start", "0.5", "--stop", "0.2"], "Expected `start` to be at most `stop` (0.2), but got 0.5."),
        (["--n", "1", "--arms", "best"], "Expected arms from 'unguided', '1:1:1'"),
        (["--n", "1", "--arms", "1:1:1 every=x"], "Expected a whole number for `every`, but got 'x'."),
        (["--n", "1", "--suite", "all", "--arms", "1:1:1"], "Expected `arms` with one suite"),
        (["--n", "1", "--suite", "all", "--weights", "auto"], "Expected weights as numbers"),
        (["--n", "1", "--judges", "oracle", "--reward", HERE], f"Expected a reward in {HERE!r}, but found none"),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, capsys):
    assert evaluate(*options, out=tmp_path) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_reduced_report_is_made_by_one_command(tmp_path):
    options = ["--n", "40", "--steps", "12", "--split", "validation", "--dtype", "bfloat16", "--judges", "oracle"]
    assert evaluate("--suite", "all", *options, out=tmp_path) == 0
    by_axis = {}
    for suite in ("weights", "rivals", "scale-sweep"):
        summary = json.loads((tmp_path / f"{suite}-validation.json").read_text())
        assert summary["n"] == 40
        by_axis.update({(row["arm"], row["axis"]): row for row in summary["rows"]})
    # the sliders for picture and motion do what they say, and the other way round if flipped
    assert by_axis["1:0:0", "VQ"]["win"] > 50 > by_axis["1:0:0 flipped", "VQ"]["win"]
    assert by_axis["0:1:0", "MQ"]["win"] > 50 > by_axis["0:1:0 flipped", "MQ"]["win"]
    # who chooses among more candidates, or pushes harder, gets more of what it asks for
    assert by_axis["best of 4", "mean"]["target_gain"] > by_axis["best of 2", "mean"]["target_gain"] > 0
    gains = [by_axis[f"scale {scale}", "mean"]["target_gain"] for scale in ("0.25", "1", "4")]
    assert gains == sorted(gains)
    assert all(arm["diversity"] for arm in summary["arms"])
    pictures = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "report.md").read_text())
    assert len(pictures) == 5
    assert all((tmp_path / name).is_file() for name in pictures)
