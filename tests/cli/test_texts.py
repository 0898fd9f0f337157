"""Arguments that are no text in UTF-8, and terminals and names of files that are not either."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from tiny_sampler import MODEL, FakeSampler, run

from nrg_sampler.ui.settings import Settings

UNDECODABLE = os.fsdecode(b"a red \xff circle")

pytestmark = pytest.mark.usefixtures("fake")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prompt", ["generate", UNDECODABLE, *MODEL]),
        ("prompt", ["compare", UNDECODABLE, *MODEL]),
        ("negative_prompt", ["generate", "x", *MODEL, "--negative-prompt", UNDECODABLE]),
        ("judge", ["generate", "x", *MODEL, "--judge", UNDECODABLE]),
        ("prompt", ["score", "a.mp4", "--prompt", UNDECODABLE]),
        ("arms", ["evaluate", "--arms", "1:1:1", UNDECODABLE]),
        ("data", ["train-reward", "pairs.csv", "--out", "o", "--data", UNDECODABLE]),
        ("axes", ["train-reward", "pairs.csv", "--out", "o", "--axes", "VQ", UNDECODABLE]),
        ("reward", ["evaluate-reward", "pairs.csv", "--out", "o", "--reward", UNDECODABLE]),
    ],
)
def test_a_text_in_another_encoding_is_refused_before_anything_is_done(
    fake: type[FakeSampler],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: list[str],
) -> None:
    monkeypatch.setattr(fake, "sample", lambda *_: pytest.fail("sampled"))
    assert run(*arguments) == 2
    line = capsys.readouterr().err
    assert line == (
        f"nrg-sampler: error: Expected `{name}` to be a text that UTF-8 can hold, but got 'a red \\udcff circle'.\n"
    )
    assert not list(Path.cwd().iterdir())


def test_a_path_in_another_encoding_is_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    folder = os.fsdecode(b"d\xff")
    assert run("generate", "x", *MODEL, "--out", folder) == 0
    sys.stdout.flush()
    assert written.getvalue().startswith(b"d\xff/x-seed0.mp4  (")
    assert (Path(folder) / "x-seed0.json").is_file()


def test_a_terminal_that_lacks_a_sign_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert run("compare", "x", *MODEL, "--num", "2") == 0
    sys.stdout.flush()
    assert b"VQ +1.000 [+1.000, +1.000] (2 of 2 rose) ? TA" in written.getvalue()


def test_a_program_gets_the_same_sentence_from_the_page() -> None:
    values = {"weights": "1:1", "strength": 1.0, "steps": 4, "cfg": 1.0, "seed": 0, "model": "shapes"}
    with pytest.raises(ValueError, match=r"Expected `prompt` to be a text that UTF-8 can hold, but got 'a \\ud800'"):
        Settings.read({**values, "prompt": "a \ud800"})
