from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from nrg_sampler import video


def clip(height: int = 64, width: int = 64, frames: int = 5) -> video.Frames:
    """A red square that moves right over a dark grey picture."""
    frames_array = np.full((frames, height, width, 3), 40, dtype=np.uint8)
    for index in range(frames):
        frames_array[index, 16:48, 4 + 4 * index : 36 + 4 * index] = (230, 40, 40)
    return frames_array


def stream_of(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path)]
    report = subprocess.run(command, capture_output=True).stderr.decode()
    return next(line for line in report.splitlines() if "Video:" in line)


def test_floats_become_bytes_by_rounding_and_clamping() -> None:
    frames = np.array([-0.1, 0.0, 0.5, 1.0, 1.2, 0.25]).reshape(1, 1, 2, 3)
    assert video.to_uint8(frames).ravel().tolist() == [0, 0, 128, 255, 255, 64]


def test_bytes_stay_as_they_are() -> None:
    assert (video.to_uint8(clip()) == clip()).all()


@pytest.mark.parametrize("shape", [(64, 64, 3), (5, 3, 64, 64), (0, 64, 64, 3)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected frames of shape \(T, H, W, 3\), but got"):
        video.to_uint8(np.zeros(shape))


def test_a_video_with_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        video.to_uint8(np.full((1, 2, 2, 3), np.nan))


def test_equal_frames_have_equal_hashes_also_when_not_contiguous() -> None:
    frames = clip()
    assert video.frames_sha256(frames) == video.frames_sha256(
        frames.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)
    )
    assert video.frames_sha256(frames) != video.frames_sha256(frames[::-1])


@pytest.mark.parametrize(("side", "expected"), [(64, 256), (100, 300), (480, 480), (832, 832)])
def test_small_videos_are_enlarged_by_a_whole_factor_and_large_ones_left(side: int, expected: int) -> None:
    frames = clip(side, side, 1)
    enlarged = video.enlarge(frames)
    assert enlarged.shape == (1, expected, expected, 3)
    factor = expected // side
    assert (enlarged[:, ::factor, ::factor] == frames).all()


def test_side_by_side_keeps_the_order_and_puts_a_gap_between() -> None:
    left, right = clip(), 255 - clip()
    both = video.side_by_side([left, right], gap=6)
    assert both.shape == (5, 64, 134, 3)
    assert (both[:, :, :64] == left).all()
    assert (both[:, :, 70:] == right).all()
    assert (both[:, :, 64:70] == video.GAP_COLOR).all()


def test_side_by_side_refuses_videos_of_two_sizes() -> None:
    with pytest.raises(ValueError, match="one size and length"):
        video.side_by_side([clip(), clip(frames=4)])


def test_strip_has_a_row_for_each_video_and_shows_the_first_and_the_last_frame() -> None:
    left, right = clip(frames=13), 255 - clip(frames=13)
    strip = video.frame_strip([left, right], columns=7, gap=2)
    assert strip.shape == (64 * 2 + 2, 64 * 7 + 2 * 6, 3)
    assert (strip[:64, :64] == left[0]).all()
    assert (strip[:64, -64:] == left[-1]).all()
    assert (strip[66:, :64] == right[0]).all()


def test_strip_of_a_short_video_repeats_nothing() -> None:
    assert video.frame_strip([clip(frames=3)], columns=7, gap=0).shape == (64, 64 * 3, 3)


def test_written_video_is_h264_yuv420p_and_reads_back_nearly_the_same(tmp_path: Path) -> None:
    frames = video.enlarge(clip())
    video.write_mp4(frames, tmp_path / "clip.mp4", fps=8)
    stream = stream_of(tmp_path / "clip.mp4")
    assert "h264" in stream
    assert "yuv420p" in stream
    assert "bt709" in stream
    read, fps = video.read_mp4(tmp_path / "clip.mp4")
    assert read.shape == frames.shape
    assert fps == 8
    assert np.abs(read.astype(int) - frames).mean() < 2


def test_the_index_stands_before_the_pictures_so_that_a_browser_starts_at_once(tmp_path: Path) -> None:
    video.write_mp4(clip(), tmp_path / "clip.mp4", fps=8)
    data = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_padded_to_even_ones(tmp_path: Path) -> None:
    video.write_mp4(clip(65, 67), tmp_path / "clip.mp4", fps=8)
    assert video.read_mp4(tmp_path / "clip.mp4")[0].shape == (5, 66, 68, 3)


@pytest.mark.parametrize(
    ("name", "fps", "message"), [("clip.avi", 8, "ends in .mp4"), ("clip.mp4", 0, "`fps` to be above 0")]
)
def test_bad_arguments_are_refused(tmp_path: Path, name: str, fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video.write_mp4(clip(), tmp_path / name, fps)


def test_a_failed_write_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ffmpeg could not write"):
        video.write_mp4(clip(), tmp_path / "missing" / "clip.mp4", fps=8)
    assert not list(tmp_path.iterdir())


def test_reading_what_is_no_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        video.read_mp4(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="cannot be read as one"):
        video.read_mp4(tmp_path / "text.mp4")


def test_a_place_for_a_video_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").write_text("old")
    for name in ("old.mp4", "new/12:30.mp4", "-y.mp4"):
        assert video.writable_mp4(tmp_path / name) == tmp_path / name
    assert (tmp_path / "old.mp4").read_text() == "old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["new", "old.mp4"]


@pytest.mark.parametrize(
    ("name", "reason"), [("folder.mp4", "Is a directory"), (f"{'x' * 250}.mp4", "File name too long")]
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_sampled(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=rf"Expected a file that can be written, but .* cannot: {reason}; choose"):
        video.writable_mp4(tmp_path / name)


def test_a_missing_encoder_is_noticed_before_anything_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", absent)
    with pytest.raises(ValueError, match=r"Expected a place and an encoder for a video, but .*No ffmpeg exe"):
        video.writable_mp4(tmp_path / "clip.mp4")


def test_png_reads_back_exactly(tmp_path: Path) -> None:
    from PIL import Image

    video.write_png(clip()[0], tmp_path / "frame.png")
    with Image.open(tmp_path / "frame.png") as picture:
        assert (np.asarray(picture) == clip()[0]).all()
