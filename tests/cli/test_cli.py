"""The command line with a stand-in for the pipeline, so that every path runs in milliseconds."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nrg_sampler import cli
from nrg_sampler.cli import batch, generate
from nrg_sampler.cli.parser import options_given
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.judges.base import Judge
from nrg_sampler.runs import recipe, sampler
from nrg_sampler.runs.manifest import Clip, Manifest
from nrg_sampler.video import Frames, read_mp4

ROOT = Path(__file__).parents[2]
MODEL = ["--model", "any/model"]


class FakeSampler(sampler.Sampler):
    """Draw noise instead of sampling; ``scale`` decides the brightness, so that guidance can be seen."""

    interrupt_at: int | None = None
    machine = "this one"

    def __init__(self, what: recipe.Recipe, judges: Mapping[str, Judge] | None = None) -> None:
        self.recipe, self.judges = what, judges or {}
        self.pipe = type("Pipe", (), {"sampling_defaults": {"num_inference_steps": 4}})
        self.fps = 16.0
        self.fingerprints = {"model": self.machine}

    def sample(self, seed: int, guided: bool = True, on_step: Any = None) -> tuple[Frames, Clip]:
        if seed == self.interrupt_at:
            raise KeyboardInterrupt
        scale = self.recipe.guidance.scale if guided else 0.0
        noise = np.random.default_rng([seed, *self.machine.encode()]).integers(0, 99, (3, 16, 16, 3), dtype=np.uint8)
        scores = {"reward": {"VQ": 0.1 + scale, "TA": 0.25 - 0.1 * scale}}
        trace = [{"step_index": 0, "sigma": 0.9, "push_ratio": 0.1}] if scale else []
        frames = noise + np.uint8(10 * scale)
        return frames, Clip.of(sampler.clip_name(guided), frames, 0.5, scores=scores, trace=trace)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSampler]:
    """Replace the sampler wherever it is used and work in an empty folder."""
    from nrg_sampler.cli import replay

    fresh = type("FreshSampler", (FakeSampler,), {})
    for module in (batch, replay):
        monkeypatch.setattr(module, "Sampler", fresh)
    monkeypatch.chdir(tmp_path)
    return fresh


def run(*argv: str) -> int:
    return cli.main([str(word) for word in argv])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_one_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(command, "--help")
    assert exit_.value.code == 0
    assert capsys.readouterr().out.count("example: nrg-sampler " + command) == 1
    import shlex

    cli.build_parser().parse_args(shlex.split(cli.COMMANDS[command].EXAMPLE))


def options_shown(text: str) -> list[str]:
    return re.findall(r"^  (?:-h, )?(--[\w-]+)", text, flags=re.MULTILINE)


def test_the_help_of_generate_shows_at_most_thirty_options(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            run("generate", option)
        shown[option] = options_shown(capsys.readouterr().out)
    short, full = shown["--help"], shown["--help-all"]
    assert len(short) <= 30
    assert {"--help", "--preset", "--set", "--help-all", "--weights", "--start"} <= set(short)
    assert set(short) < set(full)
    assert len(full) == len(set(full))
    settings = {f"--{name.replace('_', '-')}" for name in settings_of(RewardGuidance)}
    assert settings | {"--paper", "--checkpointing", "--particles", "--fps"} <= set(full)
    assert not {"--conflicts", "--parallel", "--every", "--paper"} & set(short)


def test_help_loads_neither_diffusers_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from nrg_sampler.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'diffusers', 'transformers', 'gradio', 'av', 'imageio_ffmpeg', 'PIL'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


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


def test_env_names_versions_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env") == 0
    assert "diffusers" in capsys.readouterr().out
    run("env", "--json")
    assert {"python", "torch", "diffusers", "transformers", "nrg-sampler", "platform", "cores", "cuda"} <= json.loads(
        capsys.readouterr().out
    ).keys()


BAD_INPUT = {
    "no command": ([], "required: COMMAND"),
    "no prompt": (["generate"], "Expected a prompt or --replay, but got neither"),
    "empty prompt": (["generate", " "], "Expected a prompt, but got an empty text"),
    "negative seed": (
        ["generate", "x", "--seed", "-1"],
        "--seed: expected a whole number of at least 0, but got '-1'",
    ),
    "no videos": (["compare", "x", "--num", "0"], "--num: expected a whole number of at least 1"),
    "no number": (["generate", "x", "--scale", "strong"], "--scale: Expected a number for `scale`, but got 'strong'"),
    "no frames a second": (["generate", "x", "--fps", "0"], "--fps: expected a number above 0, but got '0'"),
    "infinite scale": (["generate", "x", "--scale", "inf"], "--scale: Expected a number for `scale`, but got 'inf'"),
    "weights that do not parse": (["generate", "x", "--weights", "1:a"], "Expected reward weights like '1:1:1'"),
    "negative weight": (["generate", "x", "--weights", "1:-1:0"], "weights of 0 or more, but got -1"),
    "all weights zero": (["generate", "x", "--weights", "0:0:0"], "at least one reward weight above 0, but got 0:0:0"),
    "no step": (["generate", "x", "--every", "0"], "--every: Expected `every` to be a whole number of 1 or more"),
    "unknown setting": (
        ["compare", "x", "--set", "hue=1"],
        "--set: Expected NAME=VALUE with a name from weights, scale,",
    ),
    "setting out of range": (
        ["compare", "x", "--set", "crop=2"],
        "--set: Expected `crop` to be above 0 and at most 1",
    ),
    "preset": (["generate", "x", "--preset", "cheap"], "--preset: invalid choice: 'cheap'"),
    "preset and paper": (
        ["generate", "x", "--preset", "fast", "--paper"],
        "Expected --preset or --paper, but got both",
    ),
    "window": (["generate", "x", "--start", "0.8", "--stop", "0.2"], "`start` to be at most `stop`"),
    "one file for two": (["generate", "x", *MODEL, "--num", "2", "--out", "a.mp4"], "Expected a folder for 2 videos"),
    "folder": (["generate", "x", *MODEL, "--out", "file/sub"], "a folder that can be written to, but file/sub cannot"),
    "no manifest": (["generate", "--replay", "none.json"], "Expected a manifest, but none.json cannot be read"),
    "replay and memory": (["generate", "--replay", "a.json", "--checkpointing"], "but got --checkpointing as well"),
    "replay and more": (
        ["generate", "x", "--replay", "a.json", "--steps", "3"],
        "but got the prompt, --steps as well",
    ),
}


def test_a_replay_refuses_every_option_but_those_of_its_own() -> None:
    """Whatever options are added: the list is read off the parser, and so is this one."""
    parser = argparse.ArgumentParser(add_help=False)
    generate.add_arguments(parser)
    nothing = vars(parser.parse_args([]))
    refused = []
    for name in nothing:
        arguments = argparse.Namespace(**{**nothing, name: object()})
        refused += [name] * bool(options_given(arguments, generate.add_arguments, generate.NOT_OF_A_RECIPE))
    assert sorted({*nothing} - {*refused}) == ["device", "json", "out", "replay"]
    assert {"checkpointing", "particles", "judge", "prompt", "every"} <= {*refused}


@pytest.mark.parametrize(("argv", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2_before_anything_is_loaded(
    argv: list[str],
    message: str,
    fake: type[FakeSampler],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").write_text("not a folder")
    monkeypatch.setattr(fake, "__init__", lambda *_: pytest.fail("loaded the model"))
    try:
        code = run(*argv)
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("nrg-sampler: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="Expected a prompt"):
        run("--debug", "generate", " ")


def test_a_warning_is_one_line(
    fake: type[FakeSampler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    def sample(*_: Any) -> Any:
        warnings.simplefilter("default")
        warnings.warn("the gradient was\nnot finite", UserWarning, stacklevel=1)
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "sample", sample)
    run("generate", "x", *MODEL)
    assert capsys.readouterr().err.startswith("nrg-sampler: warning: the gradient was not finite\n")


def test_memory_that_is_used_up_is_one_line(
    fake: type[FakeSampler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 80 GiB")

    monkeypatch.setattr(fake, "sample", sample)
    assert run("generate", "x", *MODEL) == 1
    assert capsys.readouterr().err.startswith("nrg-sampler: error: out of memory; try --checkpointing")


def test_an_error_of_the_program_itself_keeps_its_traceback(
    fake: type[FakeSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(fake, "sample", sample)
    with pytest.raises(RuntimeError, match="a bug"):
        run("generate", "x", *MODEL)
