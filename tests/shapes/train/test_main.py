"""The stages' command: one run at a time in a folder, a log that holds each step once, sentences for damaged files."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nrg_sampler.locks import FolderLock
from nrg_sampler.shapes.train import __main__ as stages
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.origin import is_made, note_origin
from nrg_sampler.training.step_log import StepLog


def tiny_stage(folder: Path, stop_after: int | None = None, save_every: float = 1e9, **options: Any) -> Any:
    model = torch.nn.Linear(2, 1)
    run = fit(
        model,
        lambda step, generator: (model(torch.ones(1, 2)).pow(2).sum(), {}),
        [torch.optim.SGD(model.parameters(), lr=0.1)],
        LoopSettings(200, warmup=1, save_every=save_every),
        folder / "tiny.pt",
    )
    yield from itertools.islice(run, stop_after)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setitem(stages.STAGES, "vae", tiny_stage)

    def start(name: str = "vae") -> None:
        monkeypatch.setattr(sys, "argv", ["train", name, "--out", str(tmp_path / "out")])
        stages.main()

    return start


def steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def test_the_log_of_a_stage_that_was_killed_and_goes_on_holds_each_step_once(
    tmp_path: Path, stage: Callable[..., None]
) -> None:
    out = tmp_path / "out"
    for _ in tiny_stage(out, stop_after=70, save_every=0.0):  # a checkpoint after every step but the last
        pass
    for _ in tiny_stage(out, stop_after=90):  # to step 159, none of it saved
        pass
    assert steps(out / "tiny.jsonl") == [50, 100, 150]
    with open(out / "tiny.jsonl", "a") as log:
        log.write('{"step": 200, "lo')  # cut off
    stage()
    assert steps(out / "tiny.jsonl") == [50, 100, 150, 200]
    stage()
    assert steps(out / "tiny.jsonl") == [50, 100, 150, 200]


def test_a_log_drops_what_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for numbers in ({"step": 1}, {"step": 2}, {"step": 3}):
        StepLog(file).write(numbers)
    file.write_bytes(file.read_bytes() + b'\xff\n[1]\n{"a": 1}\n')
    again = StepLog(file)
    again.write({"step": 2})
    again.write({"step": 3})
    assert steps(file) == [1, 2, 3]


@pytest.mark.parametrize("name", ["vae", "bundle"])
def test_a_second_stage_in_the_same_folder_is_refused(
    tmp_path: Path, stage: Callable[..., None], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"), pytest.raises(SystemExit) as stopped:
        stage(name)
    assert stopped.value.code == 2
    assert re.fullmatch(rf"{name}: error: Expected a folder that no other run .*\n", capsys.readouterr().err)


def test_a_bundle_without_its_parts_is_one_line(
    stage: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        stage("bundle")
    assert stopped.value.code == 2
    assert re.fullmatch(r"bundle: error: Expected .*/vae, made by the stage `vae`.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("content", [b"", b"\x80\x02half", {"model": {}}])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "tiny.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r"in .*tiny.pt, but it .*; copy it again, or remove it to begin anew\."):
        next(tiny_stage(tmp_path))


def test_a_checkpoint_that_was_cut_off_is_named(tmp_path: Path) -> None:
    list(tiny_stage(tmp_path))
    file = tmp_path / "tiny.pt"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"Expected a whole checkpoint in .*tiny.pt, but it cannot be read"):
        next(tiny_stage(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_note_of_what_a_file_was_made_with_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pool.safetensors"
    file.touch()
    note_origin(file, {"vae": "a"})
    (tmp_path / "pool.origin.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected a JSON object in .*pool.origin.json, but it .*; remove it and"):
        is_made(file, {"vae": "a"})
