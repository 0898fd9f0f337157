"""The command line as a whole: help, bad input in one line, errors and warnings."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_sampler import MODEL, FakeSampler, run

from nrg_sampler import cli
from nrg_sampler.cli import generate
from nrg_sampler.cli.parser import options_given
from nrg_sampler.guidance.fields import settings_of
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.runs.manifest import Manifest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("fake")


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


def test_a_name_that_another_run_takes_meanwhile_is_left_to_it(
    fake: type[FakeSampler], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both began when the name was free; the other one, of the same prompt and folder, finishes first."""
    plain = FakeSampler.sample

    def sample(self: FakeSampler, seed: int, *rest: Any, **named: Any) -> Any:
        monkeypatch.setattr(fake, "sample", plain)
        assert run("compare", "x y", "--num", "1", "--scale", "0", *MODEL, "--out", "o") == 0
        return plain(self, seed, *rest, **named)

    monkeypatch.setattr(fake, "sample", sample)
    assert run("compare", "x y", "--num", "1", *MODEL, "--out", "o") == 0
    stems = ("x-y-seed0", "x-y-seed0-2")
    expected = [f"{stem}.{suffix}" for stem in stems for suffix in ("json", "mp4", "png")]
    strips = ["x-y-compare.png", "x-y-compare-2.png"]
    assert sorted(file.name for file in Path("o").iterdir()) == sorted([*expected, *strips])
    scales = [Manifest.read(Path("o") / f"{stem}.json").recipe.guidance.scale for stem in stems]
    assert scales == [0.0, 1.0]
    shown = capsys.readouterr().out
    assert f"{Path('o/x-y-seed0-2.mp4')}  (" in shown


def test_a_run_that_fails_leaves_nothing_behind(fake: type[FakeSampler], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no room")

    monkeypatch.setattr(Manifest, "write", fail)
    assert run("generate", "x", *MODEL, "--out", "o") == 2
    assert not list(Path("o").iterdir())


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


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 80 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError("Unable to allocate 7.11 PiB for an array"),
    ],
    ids=["gpu", "torch on the cpu", "numpy"],
)
def test_memory_that_is_used_up_is_one_line(
    fake: type[FakeSampler],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def sample(*_: Any) -> Any:
        raise error

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
