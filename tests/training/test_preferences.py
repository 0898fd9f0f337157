"""Preference files with real videos: what is read, what is left out and why."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from tiny_pairs import write_pairs

from nrg_sampler.training.decoding import ClipSettings, UnreadableClipError, inspect_pairs, read_clip
from nrg_sampler.training.preferences import read_preferences, split_pairs
from nrg_sampler.video import write_mp4

SETTINGS = ClipSettings(height=16, width=16, num_frames=3, fps=8)
HEADER = ["path_A", "path_B", "prompt", "VQ", "MQ", "TA", "fps_A", "num_frames_A", "fps_B", "num_frames_B"]


def write_csv(file, header, rows):
    with open(file, "w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


@pytest.fixture
def videos(tmp_path):
    """Four good clips at 8 frames a second and three bad files."""
    for index in range(4):
        frames = np.full((5, 16, 16, 3), 40 * index, dtype=np.uint8)
        frames += np.arange(5, dtype=np.uint8)[:, None, None, None] * 20
        write_mp4(frames, tmp_path / f"{index}.mp4", 8)
    write_mp4(np.zeros((2, 16, 16, 3), dtype=np.uint8), tmp_path / "short.mp4", 8)
    write_mp4(np.zeros((5, 16, 16, 3), dtype=np.uint8), tmp_path / "slow.mp4", 2)
    whole = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "codec.mp4").write_bytes(whole.replace(b"avc1", b"zzz9"))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    return tmp_path


def test_lists_every_bad_row_with_its_reason(videos):
    good = ["A", "B", "same", 8, 5, 8, 5]
    rows = [
        ["0.mp4", "1.mp4", "a circle", *good],  # row 2
        ["0.mp4", "gone.mp4", "a circle", *good],
        ["0.mp4", "2.mp4", "a circle", "A", "B", "same", 8, 0, 8, 5],
        ["0.mp4", "3.mp4", "a circle", "A", "B", "same", 30, 5, 8, 5],
        ["1.mp4", "2.mp4", "a circle", "C", "B", "same", 8, 5, 8, 5],
        ["1.mp4", "0.mp4", "a circle", *good],
        ["1.mp4", "codec.mp4", "a circle", *good],
        ["1.mp4", "text.mp4", "a circle", *good],
        ["1.mp4", "empty.mp4", "a circle", *good],
        ["1.mp4", "short.mp4", "a circle", "A", "B", "same", "", "", "", ""],
        ["1.mp4", "slow.mp4", "a circle", "A", "B", "same", 8, 5, 2, 2],
        ["2.mp4", "3.mp4", "", *good],
        ["2.mp4", "2.mp4", "a circle", *good],
        ["2.mp4", "3.mp4", "a circle", "invalid", "invalid", "", 8, 5, 8, 5],
        ["2.mp4", "3.mp4", "a circle", "A", "B", "same", "fast", 5, 8, 5],
        ["2.mp4", "3.mp4", "a square", "invalid", "B", "same", "", "", "", ""],  # row 17
    ]
    table = read_preferences(write_csv(videos / "pairs.csv", HEADER, rows))
    list(inspect_pairs(table, SETTINGS))
    assert table.axes == ("VQ", "MQ", "TA")
    assert [pair.row for pair in table.pairs] == [2, 17]
    assert table.pairs[0].preference == (1.0, -1.0, 0.0)
    assert math.isnan(table.pairs[1].preference[0])
    assert table.pairs[1].preference[1:] == (-1.0, 0.0)
    reasons = {bad.row: bad.reason for bad in table.bad}
    assert list(reasons) == list(range(3, 17))
    for row, words in {
        3: "gone.mp4, which does not exist",
        4: "has num_frames_A 0",
        5: "states 30 frames a second for 0.mp4, which has 8",
        6: "has the label 'C' for VQ; known are A, B, same and invalid",
        7: "repeats the pair of row 2",
        8: "codec.mp4 cannot be decoded",
        9: "text.mp4 cannot be decoded",
        10: "empty.mp4 cannot be decoded",
        11: "short.mp4 is too short",
        12: "slow.mp4 has 2 frames a second, fewer than the 8",
        13: "has no prompt",
        14: "compares 2.mp4 with itself",
        15: "has no label on any axis",
        16: "has fps_A 'fast', which is no number",
    }.items():
        assert words in reasons[row], row
    with pytest.raises(ValueError, match=r"Expected every row .* 14 of 16 are not; the first is row 3: names"):
        table.require(strict=True)
    table.require()


def test_reads_videogen_rewardbench_as_published(videos):
    header = ["path_A", "path_B", "A_model", "B_model", "prompt", "VQ", "MQ", "TA", "Overall"]
    header += ["fps_A", "num_frames_A", "fps_B", "num_frames_B"]
    rows = [["0.mp4", "1.mp4", "Luma", "Gen3", "a red circle", "A", "same", "B", "A", 8.0, 5.0, 8.0, 5.0]]
    table = read_preferences(write_csv(videos / "bench.csv", header, rows))
    assert table.axes == ("VQ", "MQ", "TA")
    assert table.pairs[0].overall == 1.0
    list(inspect_pairs(table, SETTINGS))
    assert not table.bad


def test_takes_any_number_of_axes_and_a_teachers_scores(videos):
    header = ["path_A", "path_B", "prompt", "beauty", "physics_score_A", "physics_score_B"]
    rows = [["0.mp4", "1.mp4", "x", "A", 0.5, 1.5], ["2.mp4", "3.mp4", "x", "B", "", 2]]
    file = write_csv(videos / "own.csv", header, rows)
    scored = read_preferences(file)
    assert scored.axes == ("physics",)
    assert torch.equal(scored.scores()[0], torch.tensor([[0.5, 1.5]]))
    assert scored.scores()[1].isnan().tolist() == [[True, False]]
    assert scored.preferences().isnan().all()
    named = read_preferences(file, axes=["beauty"])
    assert named.axes == ("beauty",)
    assert named.scores() is None
    named.require(strict=True)
    with pytest.raises(ValueError, match="Expected every axis once, but got beauty, beauty"):
        read_preferences(file, axes=["beauty", "beauty"])


def test_a_column_of_labels_is_an_axis_by_its_name_alone(videos):
    header = ["path_A", "path_B", "prompt", "shown_first", "VQ", "MQ", "annotator", ""]
    rows = [
        ["0.mp4", "1.mp4", "x", "A", "A", "", "eve", 0],
        ["2.mp4", "3.mp4", "y", "B", "B", "", "bob", 1],
        ["2.mp4", "1.mp4", "y", "B", "C", "", "bob", 2],
    ]
    file = write_csv(videos / "pairs.csv", header, rows)
    table = read_preferences(file)
    assert table.axes == ("VQ",)
    text = table.describe()
    assert text.startswith("axes VQ; 3 rows, 1 left out; columns passed over: shown_first (has labels, but is not one")
    assert text.endswith("MQ (has no label), annotator, without a name")
    table.bad.clear()
    table.require()
    with pytest.raises(
        ValueError, match="but shown_first has labels, but is not one of VQ, MQ, TA: name it as an axis"
    ):
        table.require(strict=True)
    file = write_csv(videos / "own.csv", ["path_A", "path_B", "prompt", "beauty"], [["0.mp4", "1.mp4", "x", "A"]])
    with pytest.raises(ValueError, match=r"Expected the column an axis \(VQ, MQ, TA\) .*, or name beauty as axes"):
        read_preferences(file)


def test_an_unknown_label_of_the_clip_as_a_whole_is_a_bad_row(videos):
    header = ["path_A", "path_B", "prompt", "VQ", "Overall"]
    rows = [
        ["0.mp4", "1.mp4", "x", "A", "b"],
        ["2.mp4", "3.mp4", "y" * 300, "B", "B"],
        ["0.mp4", "3" * 300, "y", "B", "B"],
    ]
    table = read_preferences(write_csv(videos / "pairs.csv", header, rows))
    assert [pair.row for pair in table.pairs] == [3]
    assert table.bad[0].reason == "has the label 'b' for Overall; known are A, B, same and invalid"
    assert "which does not exist" in table.bad[1].reason


@pytest.mark.parametrize(
    ("header", "rows", "sentence"),
    [
        (["path_A", "prompt", "VQ"], [["a", "b", "A"]], "Expected the column path_B in .* but it has path_A, prompt"),
        (["path_A", "path_B", "prompt"], [["a", "b", "c"]], "Expected the column an axis .* with the labels"),
        (["path_A", "path_B", "prompt", "VQ"], [], "Expected preference pairs in .* but it holds none"),
        (
            ["path_A", "path_B", "prompt", "VQ"],
            [["a"]],
            "Expected at least one row of .* the first is row 2: has 1 cells",
        ),
    ],
)
def test_says_what_a_file_lacks(tmp_path, header, rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_preferences(write_csv(tmp_path / "x.csv", header, rows))
    with pytest.raises(ValueError, match=r"Expected a CSV file in UTF-8, but .* cannot be read"):
        read_preferences(tmp_path / "absent.csv")


def test_samples_frames_by_time_and_cuts_around_the_centre(tmp_path):
    frames = np.zeros((9, 32, 64, 3), dtype=np.uint8)
    frames += (np.arange(9, dtype=np.uint8) * 25)[:, None, None, None]
    frames[:, :, :16] = 255  # cut off: 64x32 covers 16x16 as 32x16
    write_mp4(frames, tmp_path / "wide.mp4", 16)
    clip = read_clip(tmp_path / "wide.mp4", ClipSettings(16, 16, 4, 8))
    assert clip.shape == (3, 4, 16, 16)
    assert clip.min() >= 0
    assert clip.max() <= 1
    brightness = clip[:, :, 4:12, 4:12].mean(dim=(0, 2, 3))
    torch.testing.assert_close(brightness, torch.tensor([0.0, 50.0, 100.0, 150.0]) / 255, atol=0.03, rtol=0)
    with pytest.raises(UnreadableClipError, match="too short: 5 of 9 frames at 8 a second"):
        read_clip(tmp_path / "wide.mp4", ClipSettings(16, 16, 9, 8))
    with pytest.raises(ValueError, match="Expected `fps` to be above 0, but got 0"):
        ClipSettings(16, 16, 4, 0)


def test_shares_are_nested_and_keep_prompts_together(tmp_path):
    file = write_pairs(tmp_path, prompts=[f"prompt {index}" for index in range(40)], clips=2)
    pairs = read_preferences(file).pairs
    small, large = (list(split_pairs(pairs, share, "x")) for share in (0.2, 0.6))
    assert 0 < sum(small) < sum(large) < len(pairs)
    assert all(more for less, more in zip(small, large, strict=True) if less)
    assert all(split_pairs(pairs, 1.0, "x"))
    assert not any(split_pairs(pairs, 0.0, "x"))
