"""Video files of strangers: irregular rates, deep colours, turned phones, wide pixels, odd names, broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_videos import H264, QUARTERS, encode, ramp, remux, run

from nrg_sampler.video import Frames, read_mp4, write_mp4
from nrg_sampler.video.reading import UnreadableVideoError, VideoFile

TESTSRC = "testsrc=s=96x64:r=30:d=1"
IRREGULAR = {
    "low light": (30, "lt(t,1)+not(mod(n,2))"),
    "screen recording": (60, "not(mod(n,2))*lt(t,1)+gte(t,1)*not(mod(n,3))*lt(t,2)+gte(t,2)*not(mod(n,5))"),
    "120 ticks": (120, "not(mod(n,4))+eq(mod(n,60),1)"),
    "still for long": (30, "eq(n,0)+gte(t,3)"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return encode(folder / "plain.mp4", TESTSRC, *H264, "-pix_fmt", "yuv420p")


@pytest.fixture(scope="module")
def corner(folder: Path) -> Path:
    return encode(folder / "corner.mp4", QUARTERS, *H264, "-pix_fmt", "yuv420p")


def levels(frames: Frames) -> list[int]:
    return [round(value) for value in frames.mean(axis=(1, 2, 3)).tolist()]


def white_corner(picture: Frames) -> tuple[str, str]:
    """Where the white quarter is."""
    green = picture[..., 1] > 128
    rows, columns = green.any(axis=1).nonzero()[0], green.any(axis=0).nonzero()[0]
    return "top" if rows[0] < 4 else "bottom", "left" if columns[0] < 4 else "right"


@pytest.mark.parametrize("kind", IRREGULAR)
def test_an_irregular_rate_gives_the_frames_that_are_shown_and_the_true_length(folder: Path, kind: str) -> None:
    video = VideoFile(ramp(folder / f"{kind}.mp4", *IRREGULAR[kind]))
    assert video.seconds == pytest.approx(4, abs=0.1)
    wanted = [time / 8 for time in range(13)]
    began = [max(start for start in video.times if start <= time + 1e-6) for time in wanted]
    got = levels(np.stack(list(video.at(wanted))))
    assert got == pytest.approx([64 * start for start in began], abs=2)
    frames, fps = read_mp4(video.path)
    assert len(frames) / fps == pytest.approx(video.seconds)
    shown = [max(start for start in video.times if start <= index / fps + 1e-3) for index in range(len(frames))]
    assert levels(frames) == pytest.approx([min(255, 64 * start) for start in shown], abs=3)


def test_there_is_no_frame_behind_the_end(plain: Path) -> None:
    video = VideoFile(plain)
    assert [len(list(video.at([0.5, time]))) for time in (0.99, 1.0, 5.0)] == [2, 1, 1]
    assert len(list(video.at([0.5] * 3))) == 3


@pytest.mark.parametrize("rate", ["1000", "30000/1001", "12.5", "7"])
def test_every_rate_is_understood(folder: Path, rate: str) -> None:
    path = encode(folder / "rate.mp4", f"testsrc=s=32x32:r={rate}", "-frames:v", "20", *H264)
    frames, fps = read_mp4(path)
    top, _, bottom = rate.partition("/")
    assert len(frames) == 20
    assert fps == float(top) / float(bottom or 1)


def test_words_in_the_metadata_change_nothing(folder: Path, plain: Path) -> None:
    title = (
        "-metadata",
        "title=Video: h264, 1920x1080, 120 fps, 120 tbr",
        "-metadata",
        "comment=Duration: 01:00:00.00",
    )
    frames, fps = read_mp4(remux(folder / "title.mp4", plain, after=title))
    assert fps == 30
    assert len(frames) == 30


DEEP = {
    "h264.mp4": ("-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
    "hevc.mp4": ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le"),
    "prores.mov": ("-c:v", "prores_ks", "-profile:v", "3"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-profile:v", "2", "-pix_fmt", "yuv420p10le"),
    "full-range.mp4": (*H264, "-pix_fmt", "yuvj420p"),
    "rgb.mp4": ("-c:v", "libx264rgb",),
    "matrix.mp4": (*H264, "-pix_fmt", "yuv444p", "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_depth_range_and_matrix_are_as_the_file_says(folder: Path, name: str) -> None:
    bars = "smptebars=s=96x64:r=10:d=0.3"
    exact = read_mp4(encode(folder / "exact.mkv", bars, "-c:v", "ffv1", "-pix_fmt", "bgr0"))[0]
    frames, _ = read_mp4(encode(folder / name, bars, *DEEP[name]))
    inner = np.abs(frames.astype(int) - exact)[:, 4:36, [6, 20, 34, 48, 62, 76, 90]]  # within the bars
    assert frames.dtype == np.uint8
    assert inner.max() <= 6


@pytest.mark.parametrize(
    ("options", "corner_at"),
    [
        (("-display_rotation", "0"), ("top", "left")),
        (("-display_rotation", "90"), ("bottom", "left")),  # anticlockwise
        (("-display_rotation", "180"), ("bottom", "right")),
        (("-display_rotation", "-90"), ("top", "right")),
        (("-display_hflip",), ("top", "right")),
        (("-display_rotation", "90", "-display_hflip"), ("bottom", "right")),
    ],
)
def test_a_turned_or_mirrored_recording_stands_upright(
    folder: Path, corner: Path, options: tuple[str, ...], corner_at: tuple[str, str]
) -> None:
    path = remux(folder / "turned.mp4", corner, *options)
    frames, _ = read_mp4(path)
    assert frames.shape[1:3] == ((48, 32) if "90" in options or "-90" in options else (32, 48))
    assert white_corner(frames[0]) == corner_at
    small = next(VideoFile(path).at([0.0], size=(frames.shape[1] // 2, frames.shape[2] // 2)))
    assert white_corner(small) == corner_at


@pytest.mark.parametrize(
    ("aspect", "size"), [("2", (32, 96)), ("16/15", (32, 51)), ("1/2", (64, 48)), ("99", (32, 48))]
)
def test_wide_pixels_become_square(folder: Path, aspect: str, size: tuple[int, int]) -> None:
    path = encode(folder / "wide.mp4", QUARTERS, "-vf", f"setsar={aspect}", *H264)
    assert read_mp4(path)[0].shape == (30, *size, 3)
    assert VideoFile(path).size == size


def test_odd_sides_stay(folder: Path) -> None:
    path = encode(folder / "odd.mkv", "testsrc=s=97x65:r=30:d=0.2", "-c:v", "ffv1", "-pix_fmt", "yuv420p")
    assert read_mp4(path)[0].shape == (6, 65, 97, 3)


@pytest.mark.parametrize(
    "name", ["12:30:05.mp4", "-y.mp4", "50%d.mp4", "clip ü 映像.mp4", "http:x.mp4", "concat:a|b.mp4"]
)
def test_a_name_is_a_name_for_writing_and_for_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mp4(np.full((3, 16, 16, 3), 90, dtype=np.uint8), Path(name), 8)
    assert os.listdir() == [name]
    assert read_mp4(Path(name))[0].shape == (3, 16, 16, 3)


def test_a_link_is_followed_and_a_playlist_is_not(folder: Path, plain: Path) -> None:
    link = folder / "link.mp4"
    link.symlink_to(plain)
    assert len(read_mp4(link)[0]) == 30
    listed = folder / "list.mp4"
    listed.write_text("ffconcat version 1.0\nfile plain.mp4\n")
    with pytest.raises(UnreadableVideoError, match="is no video that ffmpeg knows"):
        read_mp4(listed)


def test_time_starts_at_the_first_frame_that_is_shown(folder: Path) -> None:
    whole = ramp(folder / "whole.mp4", 30, "1")
    late = read_mp4(run(folder / "late.ts", "-i", str(whole), "-c", "copy", "-output_ts_offset", "50"))
    assert len(late[0]) == 120
    assert late[1] == 30
    cut = VideoFile(remux(folder / "edit.mp4", whole, "-ss", "2"))  # an edit list hides what lies before
    assert cut.seconds == pytest.approx(2, abs=0.05)
    assert levels(np.stack(list(cut.at([0.0, 1.0])))) == pytest.approx([128, 192], abs=3)
    assert len(read_mp4(cut.path)[0]) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    "name", ["a.avi", "a.mkv", "a.webm", "a.ts", "a.gif", "a.h264", "a.mov", "fragments.mp4", "one.png"]
)
def test_other_containers_are_read(folder: Path, name: str) -> None:
    options = {
        "a.webm": ("-c:v", "libvpx"),
        "a.avi": ("-c:v", "mpeg4", "-bf", "2"),
        "a.gif": (),
        "one.png": ("-frames:v", "1"),
    }
    more = ("-movflags", "frag_keyframe+empty_moov") if name == "fragments.mp4" else ()
    rate = 25 if name == "one.png" else 10  # a picture has no rate
    path = encode(folder / name, "testsrc=s=32x32:r=10:d=1", *options.get(name, H264), *more)
    frames, fps = read_mp4(path)
    assert frames.shape == (1 if name == "one.png" else 10, 32, 32, 3)
    assert fps == pytest.approx(rate, rel=0.01)


def test_a_recording_that_begins_midway_is_shown_from_its_first_key_frame(folder: Path) -> None:
    whole = encode(folder / "stream.ts", "testsrc=s=48x32:r=30:d=4", *H264, "-g", "30", "-bf", "2")
    half = whole.stat().st_size // 188 // 2 * 188
    late = folder / "late-start.ts"
    late.write_bytes(whole.read_bytes()[half:])
    frames, fps = read_mp4(late)
    assert fps == 30
    assert len(frames) in (30, 60, 90)  # whole groups of pictures
    assert (frames == read_mp4(whole)[0][-len(frames) :]).all()


def test_of_two_frames_at_one_time_the_second_is_shown(folder: Path) -> None:
    whole = ramp(folder / "single.mkv", 10, "1", seconds=2)
    twice = remux(
        folder / "twice.mkv", whole, after=("-bsf:v", "setts=pts='if(eq(N,5),400,PTS)':dts='if(eq(N,5),400,DTS)'")
    )
    video = VideoFile(twice)
    assert (len(video.times), video.seconds) == (19, 2.0)
    assert levels(np.stack(list(video.at([0.3, 0.45, 0.6])))) == pytest.approx([19, 32, 38], abs=2)


def test_bytes_that_were_appended_do_no_harm(folder: Path, plain: Path) -> None:
    path = folder / "appended.mp4"
    path.write_bytes(plain.read_bytes() + b"\xff\xff\xff\x00TAG appended by some program")
    assert len(read_mp4(path)[0]) == 30


def test_damage_is_placed_in_time(folder: Path) -> None:
    path = encode(folder / "whole.mp4", "testsrc=s=96x64:r=30:d=2", *H264, "-g", "10")
    data = bytearray(path.read_bytes())
    start, length = data.index(b"mdat") + len(data) // 3, len(data) // 4  # whole frames
    data[start : start + length] = b"\xff" * length
    path.write_bytes(data)
    with pytest.raises(UnreadableVideoError, match=r"it is damaged after [01]\.\d\d seconds; copy"):
        read_mp4(path)
    assert len(list(VideoFile(path).at([0.0, 0.1]))) == 2  # what stands before is good


def test_a_cover_is_no_video_and_does_not_stand_for_one(folder: Path, plain: Path) -> None:
    picture = run(folder / "cover.png", "-i", str(plain), "-frames:v", "1", "-vf", "scale=16:16")
    cover = ("-i", str(picture), "-map", "1", "-map", "0", "-c", "copy", "-disposition:0", "attached_pic")
    with_cover = run(folder / "with-cover.mp4", "-i", str(plain), *cover)
    assert read_mp4(with_cover)[0].shape == (30, 64, 96, 3)
    sound = encode(folder / "song.m4a", "sine=d=0.2", "-c:a", "aac")
    with pytest.raises(UnreadableVideoError, match="song.m4a cannot be read as one: it has no moving picture; name"):
        read_mp4(sound)


def broken(folder: Path, plain: Path) -> dict[str, Path]:
    data = plain.read_bytes()
    fast = remux(folder / "fast.mp4", plain, after=("-movflags", "+faststart")).read_bytes()
    files = {
        "is empty": b"",
        "has no index, as one that is being written or was cut off": data[: data.index(b"moov") - 4],
        r"was cut off after [\d,]+ of": data[: len(data) // 2],
        "ends after 0.": fast[: len(fast) * 2 // 3],
        r"was cut off after [\d,]+ of [\d,]+ bytes": fast[:-20],
        r"was cut off after [\d,]+": remux(folder / "whole.mkv", plain).read_bytes()[:-500],
        "is no video that ffmpeg knows .Invalid data": b"no video",
        "has an unknown codec": data.replace(b"avc1", b"zzz9"),
    }
    paths = {"is no file": folder, "does not exist": folder / "none.mp4"}
    for reason, content in files.items():
        paths[reason] = folder / f"broken-{len(paths)}.mp4"
        paths[reason].write_bytes(content)
    return paths


def test_what_is_wrong_with_a_file_is_said_in_one_sentence(folder: Path, plain: Path) -> None:
    for reason, path in broken(folder, plain).items():
        with pytest.raises(UnreadableVideoError, match=rf"^Expected a video file, but .* {reason}.*; [a-z].*\.$"):
            read_mp4(path)


def test_frames_far_apart_are_found_by_seeking_as_by_decoding_everything(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ramp(folder / "keys.mp4", 30, "1")
    keyed = run(folder / "keyed.mp4", "-i", str(path), *H264[:2], "-g", "20", "-bf", "2", "-threads", "1")
    video = VideoFile(keyed)
    assert len(video._keys) > 5
    every = np.stack(list(video.at(video.times)))
    decoded: list[float] = []
    original = video._decoded

    def counted(target: Callable[[], float]) -> Iterator[Any]:
        for time, frame in original(target):
            decoded.append(time)
            yield time, frame

    monkeypatch.setattr(video, "_decoded", counted)
    times = [0.0, 1.1, 1.12, 3.5, 3.97]
    found = np.stack(list(video.at(times)))
    assert (found == every[[0, 33, 33, 105, 119]]).all()
    assert len(decoded) < 70


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in kB as Linux does")
def test_memory_holds_the_frames_that_are_kept(folder: Path) -> None:
    path = encode(folder / "large.mp4", "color=s=1280x720:r=30:d=4", *H264)
    code = (
        "import sys\nfrom pathlib import Path\nfrom resource import RUSAGE_SELF, getrusage\n"
        "from nrg_sampler.video.reading import VideoFile\n"
        "video = VideoFile(Path(sys.argv[1]))\n"
        "def peak(times): return sum(1 for _ in video.at(times)), getrusage(RUSAGE_SELF).ru_maxrss\n"
        "few, many = peak(video.times[:20]), peak(video.times)\n"
        "print(few[0], many[0], many[1] - few[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    few, many, more = map(int, done.stdout.split())
    assert (few, many) == (20, 120)
    assert more < 40_000  # kB; 100 frames kept would be 276,000, or 138,000 before they are RGB


def test_shrinking_by_a_whole_factor_undoes_an_enlarging(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 16, 24, 3), dtype=np.uint8)
    write_mp4(frames.repeat(4, axis=1).repeat(4, axis=2), tmp_path / "big.mp4", 8)
    video = VideoFile(tmp_path / "big.mp4")
    whole = read_mp4(video.path)[0].reshape(3, 16, 4, 24, 4, 3).mean(axis=(2, 4)).round()
    assert (np.stack(list(video.at(video.times, (16, 24)))) == whole).all()
    assert next(video.at([0.0], (10, 11))).shape == (10, 11, 3)
