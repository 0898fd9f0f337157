"""Clips for training from video files as people have them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_videos import H264, QUARTERS, encode, ramp, remux

from nrg_sampler.training.cache import clip_name
from nrg_sampler.training.decoding import ClipSettings, UnreadableClipError, inspect_pairs, read_clip
from nrg_sampler.training.preferences import PreferencePair, PreferenceTable
from nrg_sampler.video import write_mp4

CLIP = ClipSettings(32, 48, 13, 8)


def levels(clip):
    return (clip.mean(dim=(0, 2, 3)) * 255).tolist()


def pairs_of(*files):
    return PreferenceTable(("VQ",), [PreferencePair(2, *files, "x", (1.0,))])


@pytest.mark.parametrize(
    ("rate", "keep"),
    [
        (30, "lt(t,1)+not(mod(n,2))"),
        (60, "not(mod(n,2))*lt(t,1)+gte(t,1)*not(mod(n,3))*lt(t,2)+gte(t,2)*not(mod(n,5))"),
        (120, "not(mod(n,4))+eq(mod(n,60),1)"),
    ],
)
def test_frame_k_is_the_one_that_is_shown_at_k_over_fps(tmp_path, rate, keep):
    file = ramp(tmp_path / "ramp.mp4", rate, keep)
    got = levels(read_clip(file, CLIP))
    wanted = [8 * index for index in range(13)]
    assert all(time - 5 <= level <= time + 1 for level, time in zip(got, wanted, strict=True))
    table = pairs_of(file, file)
    list(inspect_pairs(table, CLIP))
    assert not table.bad


def test_a_picture_that_stands_still_is_repeated_and_nothing_is_shown_early(tmp_path):
    file = ramp(tmp_path / "still.mp4", 60, "lt(t,0.1)+gte(t,1)")
    got = levels(read_clip(file, CLIP))
    assert got[1:8] == pytest.approx([64 * 5 / 60] * 7, abs=2)
    assert got[8:] == pytest.approx([64, 72, 80, 88, 96], abs=2)


def test_rates_that_differ_by_rounding_give_the_frames_one_by_one(tmp_path):
    ntsc = ramp(tmp_path / "ntsc.mkv", "30000/1001", "1")
    got = levels(read_clip(ntsc, ClipSettings(32, 48, 90, 30)))
    assert np.diff(got).min() > 0.5  # none comes twice


def test_deep_colours_are_read_as_eight_bits(tmp_path):
    picture = "testsrc=s=96x64:r=30:d=2"
    files = [
        encode(tmp_path / f"{depth}.mp4", picture, *H264, "-pix_fmt", depth) for depth in ("yuv420p", "yuv420p10le")
    ]
    for count in (1, 13):
        clips = [read_clip(file, ClipSettings(64, 96, count, 8)).flatten() for file in files]
        assert torch.corrcoef(torch.stack(clips))[0, 1] > 0.98
        assert (clips[0].mean() - clips[1].mean()).abs() < 0.01


def test_a_turned_phone_and_wide_pixels_are_cropped_as_they_are_shown(tmp_path):
    corner = encode(tmp_path / "corner.mp4", QUARTERS, *H264, "-pix_fmt", "yuv420p")
    turned = remux(tmp_path / "turned.mp4", corner, "-display_rotation", "90")
    clip = read_clip(turned, ClipSettings(48, 32, 1, 8))[1, 0]  # green
    assert clip[30:, :12].mean() > 0.9
    assert clip[:20].mean() < 0.1
    wide = encode(tmp_path / "wide.mp4", QUARTERS, "-vf", "setsar=2", *H264)
    assert read_clip(wide, ClipSettings(32, 96, 1, 8))[1, 0, 4:12, 4:44].mean() > 0.9


def test_a_colon_in_a_relative_path_is_part_of_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = ramp(tmp_path / "12:30:05.mp4", 30, "1")
    assert read_clip(file.relative_to(tmp_path), CLIP).shape == (3, 13, 32, 48)


def test_what_is_wrong_with_a_file_is_its_reason(tmp_path):
    write_mp4(np.zeros((20, 16, 16, 3), dtype=np.uint8), tmp_path / "good.mp4", 8)
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 3 // 4])
    (tmp_path / "empty.mp4").write_bytes(b"")
    sound = encode(tmp_path / "sound.mp4", "sine=d=3", "-c:a", "aac")
    for file, reason in {
        tmp_path / "cut.mp4": r"cut.mp4 cannot be decoded \(it ends after .* of 2.5 seconds\)",
        tmp_path / "empty.mp4": r"empty.mp4 cannot be decoded \(it is empty\)",
        sound: r"sound.mp4 cannot be decoded \(it has no moving picture\)",
    }.items():
        with pytest.raises(UnreadableClipError, match=reason):
            read_clip(file, ClipSettings(16, 16, 13, 8))
        table = pairs_of(file, tmp_path / "good.mp4")
        list(inspect_pairs(table, ClipSettings(16, 16, 13, 8)))
        assert len(table.bad) == 1


def test_sound_that_goes_on_does_not_make_a_video_longer(tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=d=3", "-c:a", "aac")
    file = encode(tmp_path / "long-sound.mp4", "testsrc=s=48x32:r=8:d=1", *sound, *H264)
    table = pairs_of(file, file)
    list(inspect_pairs(table, CLIP))
    assert "long-sound.mp4 is too short: 1 seconds for 13 frames at 8 a second" in table.bad[0].reason


def test_clips_of_another_choice_of_frames_are_not_taken_from_a_cache(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a")
    assert clip_name(tmp_path / "a.mp4").startswith("clip/shown/")
