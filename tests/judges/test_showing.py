"""What a judge is shown of a file: all of a usual clip, a bounded selection of a long or large one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_videos import H264, encode

from nrg_sampler import cli
from nrg_sampler.judges import showing
from nrg_sampler.judges.shapes import OracleJudge
from nrg_sampler.judges.showing import view_for
from nrg_sampler.rewards.named.qwen_frames import sampled
from nrg_sampler.video import enlarge, read_mp4, write_mp4
from nrg_sampler.video.reading import VideoFile


class Small:
    axes = ("mean",)
    most_pixels = 40 * 32 * 48

    def __call__(self, clips, prompts, fps):
        assert clips[0, 0].numel() <= self.most_pixels
        return clips.mean(dim=(1, 2, 3, 4))[:, None]


class TwoASecond(Small):
    most_pixels = 40 * 32 * 48

    def frames_seen(self, total, fps):
        return len(sampled(total, fps, {"fps": 2}))


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    path = encode(tmp_path_factory.mktemp("long") / "long.mp4", "testsrc=s=48x32:r=30:d=10", *H264, "-g", "30")
    return VideoFile(path)


def test_a_usual_clip_is_shown_whole(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (13, 64, 64, 3), dtype=np.uint8)
    write_mp4(enlarge(frames), tmp_path / "clip.mp4", 8)
    video = VideoFile(tmp_path / "clip.mp4")
    view = view_for(OracleJudge(), video)
    whole, fps = read_mp4(video.path)
    assert view.fps == fps == 8
    assert (view.read(video) == whole).all()
    assert view_for(OracleJudge(), video, (64, 64), 24.0).read(video).shape == (13, 64, 64, 3)


def test_of_a_long_file_frames_are_spread_evenly_and_shrunk(long):
    view = view_for(Small(), long)
    assert len(view.times) == showing.MOST_FRAMES
    assert (view.times[0], view.times[-1]) == (0.0, long.times[-1])
    assert view.fps == pytest.approx(6.4)  # the length stays 10 seconds
    frames = view.read(long)
    assert frames.shape[1:3] == view.size == (25, 37)
    assert frames[..., 0].size <= Small.most_pixels


def test_a_judge_may_say_how_many_frames_it_looks_at(long):
    view = view_for(TwoASecond(), long)
    places = sampled(300, 30.0, {"fps": 2})
    assert list(view.times) == [long.times[place] for place in places]
    assert sampled(len(view.times), view.fps, {"fps": 2}) == list(range(20))  # it looks at each of them
    assert (view.read(long) == read_mp4(long.path)[0][places]).all()


def test_score_says_what_it_showed(long, tmp_path, capsys):
    (tmp_path / "judges.py").write_text(
        "class Small:\n    axes = ('mean',)\n    most_pixels = 61440\n"
        "    def __call__(self, clips, prompts, fps):\n        return clips.mean(dim=(1, 2, 3, 4))[:, None]\n"
    )
    judge = f"module:{tmp_path / 'judges.py'}:Small"
    assert cli.main(["score", str(long.path), "--prompt", "x", "--judge", judge, "--json", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    whole = torch.from_numpy(read_mp4(long.path)[0]).float().mean() / 255
    assert json.loads(said.out)["scores"]["module"]["mean"] == pytest.approx(float(whole), abs=0.01)
    assert "long or large: shown to module are 64 of 300 frames at 37 x 25 pixels." in said.err
