"""An evaluation that is started from Python."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from nrg_sampler.evaluation.run import Evaluation, evaluate
from nrg_sampler.evaluation.settings import SUITES, EvaluationSettings
from nrg_sampler.guidance.settings import RewardGuidance

SMALL = EvaluationSettings(
    n=2, split="validation", arms=["1:1:1"], judges=["oracle"], steps=2, batch=1, dtype="float32"
)


def test_ten_lines_make_a_table(tmp_path, capsys):
    settings = replace(SMALL, out=tmp_path, dtype="auto")
    result = evaluate(settings).finish()
    for axis in ("VQ", "MQ", "TA", "mean"):
        row = result.row("1:1:1", axis)
        print(f"{axis}: win rate {row['win']:.1f} % [{row['low']:.1f}, {row['high']:.1f}], gain {row['gain']:+.2f}")
    assert capsys.readouterr().out.count("win rate") == 4
    assert json.loads((result.folder / "weights-validation.json").read_text())["rows"][-1] == result.row("1:1:1")
    with pytest.raises(ValueError, match=r"Expected an arm of weights graded by oracle \('1:1:1'\), but got '1:0:0'"):
        result.row("1:0:0")


def test_progress_tells_how_far_it_is_and_a_stopped_run_goes_on(tmp_path, monkeypatch):
    settings = replace(SMALL, out=tmp_path, dtype="auto")
    run = evaluate(settings)
    loading = next(run)
    assert (loading.work, loading.unit) == ("loading", "model")
    assert loading.notes[0].startswith("dtype auto is ")
    assert [next(run).done for _ in range(2)] == [1, 2]
    run.close()
    evaluation = Evaluation(settings)
    sampled, sections = [], []
    monkeypatch.setattr(evaluation._sampler, "sample", _counted(evaluation._sampler.sample, sampled))
    _, *steps = evaluation.steps(sections.append)
    assert [(step.done, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [section.suite for section in sections] == ["weights"]
    assert len(sampled) == 2  # the first prompt was sampled before


def test_a_second_evaluation_into_one_folder_is_refused(tmp_path):
    settings = replace(SMALL, out=tmp_path)
    run = evaluate(settings)
    with pytest.raises(ValueError, match="no other run is writing to, but one is at work in"):
        evaluate(settings)
    run.close()
    del run
    Evaluation(settings)


def _counted(sample, calls):
    def counted(arm, *arguments):
        calls.append(arm.name)
        return sample(arm, *arguments)

    return counted


def test_the_dtype_that_auto_chose_is_what_a_folder_remembers(tmp_path, monkeypatch):
    monkeypatch.setattr("nrg_sampler.runs.device.fast_dtype", lambda device: torch.bfloat16)
    Evaluation(replace(SMALL, out=tmp_path, dtype="auto"))
    assert json.loads((tmp_path / "clips-validation.settings.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr("nrg_sampler.runs.device.fast_dtype", lambda device: torch.float32)
    with pytest.raises(ValueError, match=r"Expected clips sampled with dtype bfloat16, .* but got dtype float32"):
        Evaluation(replace(SMALL, out=tmp_path, dtype="auto"))
    Evaluation(replace(SMALL, out=tmp_path, dtype="bfloat16"))


def test_clips_without_their_settings_or_of_other_prompts_are_refused(tmp_path):
    settings = replace(SMALL, out=tmp_path)
    evaluate(settings).finish()
    file, clips = tmp_path / "clips-validation.settings.json", tmp_path / "clips-validation.csv"
    kept, rows = file.read_bytes(), clips.read_text()
    file.unlink()
    with pytest.raises(ValueError, match=r"Expected the settings of the clips of .* it is missing or damaged; put it"):
        Evaluation(settings)
    file.write_bytes(kept[:20])
    with pytest.raises(ValueError, match="missing or damaged"):
        Evaluation(settings)
    file.write_bytes(b"\xef\xbb\xbf" + kept)  # as some editors save it
    Evaluation(settings)
    prompt = rows.splitlines()[1].split(",")[2]
    clips.write_text(rows.replace(prompt, "a red zebra"))
    with pytest.raises(ValueError, match=r"Expected clips of the prompts of this evaluation .* 'a red zebra', not"):
        evaluate(settings).finish()


def test_weights_that_are_left_open_are_equal():
    assert str(EvaluationSettings().guidance.weights) == "1:1:1"
    assert str(EvaluationSettings(guidance=RewardGuidance(weights="0:0:1")).guidance.weights) == "0:0:1"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"suites": ()}, "Expected suites from weights, noise-aware, rivals, scale-sweep, but got none"),
        ({"suites": ("weight",)}, "Expected suites from .* but got weight"),
        ({"suites": SUITES}, "Expected `arms` with one suite, but got them with weights, noise-aware"),
        ({"split": "train"}, "Expected `split` to be validation or test, but got 'train'"),
        ({"n": 0}, "Expected `n` between 1 and"),
        ({"steps": 0}, "Expected `steps` to be 1 or more, but got 0"),
        ({"batch": 0}, "Expected `batch` to be 1 or more, but got 0"),
        ({"dtype": "float64"}, "Expected `dtype` from auto, float32, bfloat16, but got 'float64'"),
        ({"device": "nowhere"}, "Expected a device that is present, but got 'nowhere'"),
        ({"judges": ["jury"]}, "Expected judges from oracle"),
        ({"arms": ["best"]}, "Expected arms from 'unguided', '1:1:1'"),
        ({"suites": ["rivals"], "guidance": RewardGuidance(weights="auto")}, "Expected weights as numbers"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changed)
