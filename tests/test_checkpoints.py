"""The settings that come with a model, as somebody edited or cut them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nrg_sampler.checkpoints import SAMPLING_FILE, first_line, read_sampling


@pytest.mark.parametrize("content", [b"", b"{", b'{"fps": 8', b"[1]", b"3", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SAMPLING_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected a JSON object in .*/sampling.json, but it .*; repair or delete"):
        read_sampling(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "expected"),
    [
        ("height", "64", "a whole number of 1 or more, but got '64'"),
        ("num_frames", 0, "a whole number of 1 or more, but got 0"),
        ("num_inference_steps", 2.5, "a whole number of 1 or more, but got 2.5"),
        ("guidance_scale", [4], r"a finite number, but got \[4\]"),
        ("fps", "8", "a number above 0, but got '8'"),
        ("fps", None, "a number above 0, but got None"),
        ("closed_vocabulary", "yes", "true or false, but got 'yes'"),
        ("negative_prompt", 3, "a text or null, but got 3"),
        ("shift", float("nan"), "plain JSON with finite numbers, but got nan"),
    ],
)
def test_an_entry_of_another_kind_is_named_with_its_file(
    tmp_path: Path, entry: str, value: Any, expected: str
) -> None:
    (tmp_path / SAMPLING_FILE).write_text(json.dumps({"width": 64, entry: value}))
    with pytest.raises(ValueError, match=rf"Expected `{entry}` in .*/sampling.json to be {expected}\."):
        read_sampling(tmp_path)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    settings = {"height": 64, "guidance_scale": 4, "fps": 7.5, "closed_vocabulary": False, "anything": [1, None]}
    (tmp_path / SAMPLING_FILE).write_text(json.dumps(settings), encoding="utf-8-sig")
    assert read_sampling(tmp_path) == settings


def test_an_error_that_says_nothing_goes_by_its_name() -> None:
    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("a.\nb")) == "a"
