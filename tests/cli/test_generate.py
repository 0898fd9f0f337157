"""`generate` and its replay, with a stand-in for the pipeline: what is written where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sampler import MODEL, FakeSampler, run

from nrg_sampler.runs import sampler
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.video import read_mp4

pytestmark = pytest.mark.usefixtures("fake")


def test_generate_writes_a_video_and_a_manifest_for_each_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "A red circle!", *MODEL, "--seed", "3", "--num", "2", "--scale", "2", "--steps", "7") == 0
    names = sorted(path.name for path in Path("outputs").iterdir())
    assert names == [f"a-red-circle-seed{seed}.{kind}" for seed in (3, 4) for kind in ("json", "mp4")]
    frames, fps = read_mp4(Path("outputs/a-red-circle-seed3.mp4"))
    assert frames.shape == (3, 256, 256, 3)
    assert fps == 16
    manifest = Manifest.read(Path("outputs/a-red-circle-seed4.json"))
    assert (manifest.seed, manifest.recipe.model, manifest.recipe.sampling) == (
        4,
        "any/model",
        {"num_inference_steps": 7},
    )
    assert manifest.recipe.guidance.scale == 2
    assert len(manifest.clips[0].trace) == 1
    assert "outputs/a-red-circle-seed3.mp4" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["2026-11-27T14:30", "a:b.mp4", "./-y.mp4", "http:/x"])
def test_any_name_that_the_file_system_has_is_a_place_for_videos(out: str) -> None:
    assert run("generate", "x", *MODEL, "--out", out) == 0
    path = Path(out) if out.endswith(".mp4") else Path(out) / "x-seed0.mp4"
    assert read_mp4(path)[0].shape == (3, 256, 256, 3)
    assert path.with_suffix(".json").is_file()


@pytest.mark.parametrize("in_the_way", ["clip.mp4", "clip.json"])
def test_an_output_that_cannot_be_written_costs_no_sampling(
    in_the_way: str, fake: type[FakeSampler], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(in_the_way).mkdir()
    fake.interrupt_at = 0  # sampling would end otherwise
    assert run("generate", "x", *MODEL, "--out", "clip.mp4") == 2
    assert f"Expected a file that can be written, but {in_the_way} cannot: Is a directory" in capsys.readouterr().err


def test_nothing_in_a_folder_is_overwritten_but_a_named_file_is() -> None:
    for _ in range(3):
        run("generate", "x", *MODEL)
        run("generate", "x", *MODEL, "--out", "one.mp4")
    assert sorted(path.name for path in Path("outputs").glob("*.mp4")) == [
        "x-seed0-2.mp4",
        "x-seed0-3.mp4",
        "x-seed0.mp4",
    ]
    assert sorted(path.name for path in Path.cwd().glob("one*")) == ["one.json", "one.mp4"]


def test_ctrl_c_keeps_the_finished_videos_and_says_so(
    fake: type[FakeSampler], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.interrupt_at = 3
    assert run("generate", "x", *MODEL, "--num", "20") == 130
    assert len(list(Path("outputs").glob("*.mp4"))) == len(list(Path("outputs").glob("*.json"))) == 3
    assert capsys.readouterr().err == ("nrg-sampler: interrupted: 3 of 20 videos are finished and kept in outputs.\n")


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_replay_makes_the_same_file_again(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--weights", "VQ=0.333333333333,TA=1", "--scale", "1.5", "--damping", "0.7", "--seed", "5"]
    run(command, "x", *MODEL, *settings, "--out", "first.mp4")
    capsys.readouterr()
    assert run("generate", "--replay", "first.json") == 0
    assert "first-replay.mp4: the frames are identical to those of first.json." in capsys.readouterr().out
    first, again = (Manifest.read(Path(name)) for name in ("first.json", "first-replay.json"))
    assert first == again
    assert Path("first.mp4").read_bytes() == Path("first-replay.mp4").read_bytes()


def test_replay_that_differs_says_what_changed(
    fake: type[FakeSampler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate", "x", *MODEL, "--out", "first.mp4")
    fake.machine = "another"
    monkeypatch.setattr(sampler, "versions", lambda: {"torch": "9.9.9"})
    capsys.readouterr()
    assert run("generate", "--replay", "first.json", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["identical"] is False
    assert "model files this one then, another now" in result["changed"]
    assert any(line.startswith("torch ") and line.endswith(", 9.9.9 now") for line in result["changed"])
