"""Tables that an evaluation goes on with, as somebody edited or cut them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_clips import FakePipe, grades_of

from nrg_sampler.evaluation.arms import UNGUIDED, Arm
from nrg_sampler.evaluation.grading import COLUMNS, diversity_of_arms, read_grades
from nrg_sampler.evaluation.table import require_same_settings

HEADER = ",".join(COLUMNS)
ROW = "unguided,0,a red circle,0,0.5,0.25,1.0,0.516"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f"{HEADER}\n{ROW}\n".replace("0.25", "good"), "could not convert string to float: 'good' in the row 'unguid"),
        (f"{HEADER}\n{ROW}\n".replace("unguided,0", "unguided,x"), "invalid literal for int"),
        (f"{HEADER}\n{ROW},1,2\n", "a row has more cells than the header"),
        (f"{HEADER}\n{ROW}\n".replace("red", "r\u00e9d").encode("latin-1"), "'utf-8' codec can't decode"),
        (f"{HEADER}\n{'x' * 200_000},{ROW}\n", "field larger than field limit"),
    ],
)
def test_a_table_that_was_edited_is_named_and_left_as_it_is(tmp_path: Path, content: str | bytes, reason: str) -> None:
    file = tmp_path / "clips.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file.read_bytes()
    for read in (read_grades, lambda file: list(grades_of(FakePipe(), [Arm(UNGUIDED)], 1, file))):
        with pytest.raises(ValueError, match=r"Expected the table that an evaluation wrote in .*clips.csv") as told:
            read(file)
        assert f"but it cannot be read: {reason}" in str(told.value)
    if "more cells" in reason or "codec" in reason or "field" in reason:
        assert file.read_bytes() == before


def test_a_table_of_diversity_too(tmp_path: Path) -> None:
    file = tmp_path / "diversity.csv"
    file.write_text("arm,index,prompt,diversity\nunguided,0,a red circle,much\n")
    with pytest.raises(ValueError, match=r"in .*diversity.csv, but it cannot be read: could not convert"):
        list(diversity_of_arms(None, [], [], file, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_damaged_settings_beside_a_table_are_named(tmp_path: Path, content: bytes) -> None:
    file, table = tmp_path / "clips.settings.json", tmp_path / "clips.csv"
    file.write_bytes(content)
    table.write_text(f"{HEADER}\n{ROW}\n")
    with pytest.raises(ValueError, match=r"of the clips of .*clips.csv in clips.settings.json beside it, but"):
        require_same_settings(file, {"steps": 3}, table)
    table.unlink()
    require_same_settings(file, {"steps": 3}, table)
    assert json.loads(file.read_text()) == {"steps": 3}
