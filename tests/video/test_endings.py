"""Files in containers other than mp4 and mkv whose end is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_videos import H264, encode

from nrg_sampler.video import read_mp4
from nrg_sampler.video.reading import UnreadableVideoError

SOURCE = "testsrc2=s=96x64:r=25:d=2"


def cut(whole: Path, length: int) -> Path:
    path = whole.with_stem("cut")
    path.write_bytes(whole.read_bytes()[:length])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "reason"),
    [
        ("a.avi", ("-c:v", "mpeg4"), r"was cut off after [\d.]+ seconds"),
        ("a.flv", ("-c:v", "flv"), r"was cut off after [\d.]+ seconds"),
        ("a.mpg", ("-c:v", "mpeg2video"), r"was cut off after [\d.]+ seconds"),
        ("a.wmv", ("-c:v", "wmv2"), r"was cut off after [\d,]+ of [\d,]+ bytes"),
        ("a.ts", H264, r"was cut off within a packet, after [\d,]+ bytes"),
        ("a.m2ts", H264, r"was cut off within a packet, after [\d,]+ bytes"),
    ],
)
def test_a_file_that_was_cut_off_is_said_to_be(tmp_path: Path, name: str, codec: tuple[str, ...], reason: str) -> None:
    whole = encode(tmp_path / name, SOURCE, *codec)
    assert read_mp4(whole)[0].shape == (50, 64, 96, 3)
    broken = cut(whole, whole.stat().st_size * 3 // 5 // 188 * 188 + 77)
    with pytest.raises(UnreadableVideoError, match=rf"^Expected a video file, but .*/cut.* {reason}; copy or "):
        read_mp4(broken)


def test_a_recording_ends_where_it_ends(tmp_path: Path) -> None:
    """A ts file of whole packets is what a receiver stops with."""
    whole = encode(tmp_path / "a.ts", SOURCE, *H264)
    frames, _ = read_mp4(cut(whole, whole.stat().st_size * 3 // 5 // 188 * 188))
    assert 20 < len(frames) < 50


def test_of_an_interlaced_frame_one_field_is_shown(tmp_path: Path) -> None:
    """Black and white in turn, 50 times a second, are the two fields of each of 25 frames."""
    fields = "color=black:s=96x64:r=50:d=1,format=gray,geq=lum='255*mod(N,2)',tinterlace=interleave_top,fieldorder=tff"
    coding = ("-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p", "-flags", "+ilme+ildct")
    interlaced = encode(tmp_path / "fields.mp4", fields, *coding, "-x264opts", "tff=1")
    frames, fps = read_mp4(interlaced)
    assert (frames.shape, fps) == ((25, 64, 96, 3), 25)
    assert frames.max() < 8


def test_an_interlaced_frame_keeps_its_size_and_position(tmp_path: Path) -> None:
    """A still picture has no second field that differs: every row is where it was."""
    still = "color=red:s=96x62:r=25:d=0.2,drawbox=w=96:h=32:c=white:t=fill"
    coding = ("-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv444p", "-flags", "+ilme+ildct", "-x264opts", "tff=1")
    frames, _ = read_mp4(encode(tmp_path / "still.mp4", still, *coding))
    assert frames.shape[1:] == (62, 96, 3)
    green = frames[0, :, 48, 1]
    assert green[:31].min() > 200
    assert green[33:].max() < 60
