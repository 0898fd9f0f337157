"""`compare`, with a stand-in for the pipeline: both videos, what changed, and the alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_sampler import MODEL, FakeSampler, run

from nrg_sampler.runs.manifest import Clip, Manifest
from nrg_sampler.video import Frames, read_mp4

pytestmark = pytest.mark.usefixtures("fake")


def test_compare_writes_both_side_by_side_a_strip_and_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "x", *MODEL, "--num", "2", "--scale", "3") == 0
    frames, _ = read_mp4(Path("outputs/x-seed0.mp4"))
    assert frames.shape == (3, 256, 2 * 256 + 8, 3)
    left, right = frames[:, :, :256].mean(), frames[:, :, -256:].mean()
    assert right - left == pytest.approx(30, abs=3)
    assert Path("outputs/x-seed1.png").is_file()
    clips = Manifest.read(Path("outputs/x-seed1.json")).clips
    assert [clip.name for clip in clips] == ["unguided", "guided"]
    out = capsys.readouterr().out
    assert out.count("VQ +3.00 · TA -0.30") == 2
    assert "outputs/x-compare.png  (all seeds)\n  mean of 2 seeds [95 % t-interval]\n" in out
    assert "  reward  VQ +3.000 [+3.000, +3.000] (2 of 2 rose) · TA -0.300 [-0.300, -0.300] (0 of 2 rose)\n" in out
    assert Path("outputs/x-compare.png").is_file()


def test_compare_takes_four_seeds_unless_a_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", "x", *MODEL) == run("compare", "x", *MODEL) == 0
    assert "(4 of 4 rose)" in capsys.readouterr().out
    assert len(list(Path("outputs").glob("x-seed*.mp4"))) == 8
    assert sorted(path.name for path in Path("outputs").glob("*compare*")) == ["x-compare-2.png", "x-compare.png"]
    assert run("compare", "x", *MODEL, "--out", "pair.mp4") == 0
    assert "seeds [95" not in capsys.readouterr().out  # a single seed has no interval
    assert sorted(path.name for path in Path.cwd().glob("pair*")) == [
        "pair-compare.png",
        "pair.json",
        "pair.mp4",
        "pair.png",
    ]


def test_compare_says_when_the_guidance_had_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", "x", *MODEL, "--scale", "0")
    assert "no effect: both videos are identical" in capsys.readouterr().out


def test_compare_raises_an_alarm_when_only_the_reward_is_pleased(
    fake: type[FakeSampler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def sample(self: FakeSampler, seed: int, guided: bool = True) -> tuple[Frames, Clip]:
        frames, clip = FakeSampler.sample(self, seed, guided)
        fall = 0.2 if guided else 0.0
        return frames, replace(clip, scores={**clip.scores, "oracle": {"VQ": 0.5 - fall, "TA": 0.5}})

    monkeypatch.setattr(fake, "sample", sample)
    run("compare", "x", *MODEL, "--weights", "VQ=1", "--num", "2")
    alarm = "The reward that guided rose by 1.00 on VQ while the oracle fell by 0.20"
    assert capsys.readouterr().out.count(alarm) == 3  # each seed and their mean
    run("compare", "x", *MODEL, "--weights", "TA=1", "--json")
    assert [json.loads(line)["alarm"] for line in capsys.readouterr().out.splitlines()] == [None] * 5


def test_json_is_one_object_a_video(capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", "x", *MODEL, "--num", "2", "--json")
    *results, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["seed"] for result in results] == [0, 1]
    assert results[0]["change"] == {"reward": {"VQ": 1.0, "TA": -0.1}}
    assert all(Path(result[kind]).is_file() for result in results for kind in ("video", "manifest"))
    assert (last["seeds"], last["alarm"]) == ([0, 1], None)
    assert Path(last["strip"]).is_file()
    assert last["mean"]["reward"]["VQ"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "rose": 2, "seeds": 2}
    run("compare", "x", *MODEL, "--num", "1", "--json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["mean"]["reward"]["VQ"] == {"mean": 1.0, "low": None, "high": None, "rose": 1, "seeds": 1}


@pytest.mark.parametrize("name", ["pair.png", "pair-compare.png", "pair.json"])
def test_every_file_is_tried_before_anything_is_sampled(
    fake: type[FakeSampler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(fake, "sample", lambda *_: pytest.fail("sampled"))
    Path(name).mkdir()
    assert run("compare", "x", *MODEL, "--out", "pair.mp4") == 2
    line = capsys.readouterr().err
    assert line == (
        f"nrg-sampler: error: Expected a file that can be written, but {name} cannot: Is a directory; choose another "
        "name.\n"
    )


def test_a_name_whose_strip_is_taken_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("outputs/x-seed0.png").mkdir(parents=True)
    Path("outputs/x-compare.png").mkdir()
    assert run("compare", "x", *MODEL, "--num", "1") == 0
    assert Path("outputs/x-seed0-2.png").is_file()
    assert Path("outputs/x-compare-2.png").is_file()


def test_a_replay_tries_every_file_too(
    fake: type[FakeSampler], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", "x", *MODEL, "--out", "pair.mp4") == 0
    monkeypatch.setattr(fake, "sample", lambda *_: pytest.fail("sampled"))
    Path("again.png").mkdir()
    assert run("generate", "--replay", "pair.json", "--out", "again.mp4") == 2
    assert "again.png cannot: Is a directory" in capsys.readouterr().err
