"""A reward distilled from a teacher by a command: from prompts or videos to a reward that ranks clips."""

from __future__ import annotations

import json
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from nrg_sampler import LatentReward, cli
from nrg_sampler.training.distil import read_prompts
from nrg_sampler.training.settings import TeacherClips
from nrg_sampler.training.sources import VideoFiles
from nrg_sampler.video import write_mp4

PROMPTS = [
    f"{opening}a {color} {shape} moving {way}"
    for opening in ("", "right left ", "a a ")
    for color in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "right")
]
TEACHERS = '''
import torch

class Brightness(torch.nn.Module):
    """Frames alone."""

    axes = ("light",)

    def forward(self, clips):
        return clips.mean(dim=(1, 2, 3, 4))[:, None]

class Wanted:
    """Bright if it was to be red, dark if blue."""

    axes = ("VQ", "TA")

    def __call__(self, clips, prompts, fps):
        light = clips.mean(dim=(1, 2, 3, 4))
        sign = torch.tensor([1.0 if "red" in prompt else -1.0 for prompt in prompts])
        return torch.stack([light, sign * light], dim=1)

class Constant:
    axes = ("light",)

    def __call__(self, clips, prompts, fps):
        return torch.zeros(len(clips), 1)

class Broken(Constant):
    def __call__(self, clips, prompts, fps):
        return torch.full((len(clips), 1), float("nan"))

no_axes = abs
'''
SHORT = shlex.split("--blocks 1 --lr 1e-2 --trunk-lr 1e-3 --warmup 5 --ema 0.9 --mixed-precision no")
ENCODING = shlex.split("--dtype float32 --cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, components):
    """A tiny pipeline, prompts, teachers, and videos of one brightness each."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    folder = tmp_path_factory.mktemp("teacher")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler()).save_pretrained(folder / "tiny")
    made_for = {"height": 16, "width": 16, "num_frames": 5, "fps": 8, "max_sequence_length": 8}
    (folder / "tiny" / "sampling.json").write_text(json.dumps({**made_for, "num_inference_steps": 4}))
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "", PROMPTS[0]]))
    (folder / "teachers.py").write_text(TEACHERS)
    (folder / "videos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        frame = rng.integers(0, 60, (6, 16, 16, 3)) + 15 * index
        write_mp4(frame.astype(np.uint8), folder / "videos" / f"{index:02}.mp4", 8)
        (folder / "videos" / f"{index:02}.txt").write_text(PROMPTS[index] + "\n")
    return folder


def command(name, folder, out, *more, teacher="Brightness", source=None):
    start = ["--prompts", str(folder / "prompts.txt")] if source is None else [str(source)]
    options = ["--teacher", f"module:{folder / 'teachers.py'}:{teacher}", "--model", str(folder / "tiny")]
    options += ["--out", str(folder / out), "--cache", str(folder / "cache"), "--clip-batch", "16"]
    return cli.main([name, *start, *options, *ENCODING, *(SHORT if name == "train-reward" else []), *more])


def test_a_command_distils_a_reward_that_ranks_held_out_clips_above_chance(folder, capsys):
    more = ["--clips", "256", "--clips-per-prompt", "8", "--hold-out", "0.4", "--other-prompts", "1"]
    assert command("train-reward", folder, "light", *more, "--steps", "80", "--batch", "16", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["axes"] == ["light"]
    assert report["held_out"] > 30
    low = report["accuracy"]["0.0-0.2"]["light"]
    assert low["pairs"] > 50
    assert low["accuracy"] > 0.62
    reward = LatentReward.from_pretrained(folder / "light" / "reward")
    assert reward.config.about["training"]["loss"] == "regression"
    assert reward.std[0] > 0
    card = (folder / "light" / "reward" / "README.md").read_text()
    assert "256 clips, sampled for the prompts of prompts.txt, scored by module" in card
    assert "no human labels" in card
    assert str(folder) not in card

    evaluated = ["--clips", "16", "--other-prompts", "1", "--clip-seed", "1000", "--json"]
    rewards = ["--reward", str(folder / "light" / "reward")]
    assert command("evaluate-reward", folder, "graded", *evaluated, *rewards) == 0
    graded = json.loads(capsys.readouterr().out)
    assert graded["rewards"][0]["axes"]["light"]["pairs"] == graded["pairs"] >= 16
    assert command("evaluate-reward", folder, "other", *evaluated, *rewards, teacher="Wanted") == 2
    assert "Expected a teacher of the rewards' axes (light), but" in capsys.readouterr().err


def test_a_reward_learns_along_trajectories_and_is_graded_there(folder, capsys):
    more = ["--clips", "128", "--clips-per-prompt", "4", "--hold-out", "0.3", "--other-prompts", "0", "--trajectories"]
    sampling = ["--sampling-steps", "12"]
    training = ["--steps", "60", "--batch", "16", "--json"]
    assert command("train-reward", folder, "along", *more, *sampling, *training) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["accuracy"]) == 7
    reward = LatentReward.from_pretrained(folder / "along" / "reward")
    assert reward.needs_velocity
    assert reward.noise_beside.time_proj.weight.abs().max() > 0
    evaluated = ["--clips", "32", "--other-prompts", "0", "--clip-seed", "1000", "--trajectories", *sampling]
    asked = ["--reward", str(folder / "along" / "reward"), "--json"]
    assert command("evaluate-reward", folder, "graded along", *evaluated, *asked) == 0
    graded = json.loads(capsys.readouterr().out)["rewards"][0]["axes"]["light"]
    assert graded["pairs"] > 20 and list(graded["by_sigma"].values())[-1] > 0.6
    assert (folder / "graded along" / "accuracy.md").read_text().count("| light |") == 1
    assert command("evaluate-reward", folder, "noised", *evaluated[:6], *asked) == 2
    assert "evaluate it with --trajectories." in capsys.readouterr().err
    with_labels = ["evaluate-reward", "pairs.csv", "--trajectories", "--reward", "r", "--out", str(folder / "no")]
    assert cli.main(with_labels) == 2
    assert "beside --trajectories, but got no teacher" in capsys.readouterr().err


def test_video_files_and_samples_together_under_other_prompts(folder, tmp_path, capsys):
    table = tmp_path / "clips.csv"
    lines = [f"{index:02}.mp4,{PROMPTS[index]}" for index in range(12)]
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    rows = ["path,prompt", *lines, "gone.mp4,a red circle", "00.mp4,", f"{broken},a blue circle"]
    table.write_text("\n".join(rows))
    more = ["--videos", str(folder / "videos"), "--prompts", str(folder / "prompts.txt"), "--clips", "12"]
    more += ["--steps", "3", "--batch", "4", "--hold-out", "0.2", "--json", "--recommended-scale", "40"]
    more += ["--recommended-damping", "TA=2.5"]
    assert command("train-reward", folder, "both", *more, teacher="Wanted", source=table) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["axes"] == ["VQ", "TA"]
    assert report["pairs"] > 20
    reasons = {bad["row"]: bad["reason"] for bad in report["bad_rows"]}
    assert reasons.keys() == {14, 15, 16}
    assert "broken.mp4 cannot be decoded" in reasons[16]
    assert captured.err.count("left out: row") == 3
    reward = LatentReward.from_pretrained(folder / "both" / "reward")
    assert reward.config.text_axes == ["TA"]
    assert reward.recommended_scale == (40, 40)
    assert reward.recommended_damping == (0.0, 2.5)
    assert reward.recommended_fading is None


@pytest.mark.parametrize("given", [["--recommended-damping", "much"], ["--recommended-scale", "-1"]])
def test_what_cannot_be_recommended_is_refused_before_any_work(folder, capsys, given):
    assert command("train-reward", folder, "never", *given, teacher="Wanted") == 2
    name = given[0][2:].replace("-", "_")
    assert f"Expected `{name}` to be 0 or more" in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_a_folder_of_videos_reads_the_prompts_beside_them(folder, tmp_path):
    encoder = SimpleNamespace(settings=None)
    source = VideoFiles(encoder, folder / "videos", batch=5)
    assert source.prompts == PROMPTS[:12]
    assert list(map(len, source.batches())) == [5, 5, 2]
    assert not source.bad
    (tmp_path / "alone.mp4").write_text("")
    assert [str(bad) for bad in VideoFiles(encoder, tmp_path).bad] == ["row 1: has no prompt for alone.mp4"]
    with pytest.raises(ValueError, match=r"Expected videos \(\.mp4, .*\) in .*, but there are none"):
        VideoFiles(encoder, folder)


def test_a_folder_is_read_whatever_its_files_are_called_and_says_what_it_passes_over(tmp_path):
    for name in ("a.MP4", "b.mov", "c.webm", "d.MKV", "e.m4v", "f.avi", "notes.md", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_bytes(f"\ufeff a red circle {name}\r\n".encode())
    (tmp_path / "e.txt").write_bytes(b"caf\xe9")
    (tmp_path / "lone.txt").write_text("a prompt without its clip")
    source = VideoFiles(SimpleNamespace(settings=None), tmp_path)
    assert source.prompts == [f"a red circle {name}" for name in "abcd"]
    assert [bad.reason.partition(" (")[0] for bad in source.bad] == ["has no prompt for e.m4v that can be read"]
    assert source.notes == (f"passed over in {tmp_path.name}: f.avi, lone.txt, notes.md",)


def test_a_table_of_clips_says_what_it_leaves_out(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a")
    rows = ["path,prompt", "a.mp4,a red circle", ",a blue circle", "a.mp4,a cat, asleep", "gone.mp4,x", "a.mp4,"]
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    source = VideoFiles(SimpleNamespace(settings=None), tmp_path / "clips.csv")
    assert source.prompts == ["a red circle"]
    assert sorted(str(bad) for bad in source.bad) == [
        "row 3: has no path",
        "row 4: has 3 cells, but the header has 2; quote a cell that holds commas",
        "row 5: names gone.mp4, which does not exist",
        "row 6: has no prompt for a.mp4",
    ]


def test_strict_reaches_the_clips_of_a_teacher(folder, tmp_path, capsys):
    shutil.copytree(folder / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "old.avi").write_bytes(b"")
    options = [f"--teacher=module:{folder / 'teachers.py'}:Brightness", str(tmp_path / "videos"), *SHORT, *ENCODING]
    command = ["train-reward", *options, "--model", str(folder / "tiny"), "--out", str(tmp_path / "out"), "--strict"]
    assert cli.main([*command, "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "of videos: 12 clips" in error
    assert "Expected every clip to be usable, but 1 are not; the first: passed over in videos: old.avi" in error


def test_a_list_of_prompts_begins_without_a_byte_order_mark(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red circle\r\n\r\na blue\u2028circle\n".encode())
    assert read_prompts(TeacherClips("pixel", prompts=tmp_path / "prompts.txt")) == [
        "a red circle",
        "a blue\u2028circle",
    ]


BAD = {
    "nobody": ((), {}, "Expected PAIRS.csv with labels, or a --teacher to do without"),
    "no clips": ((), {"teacher": "Brightness"}, "Expected clips for the teacher, but got none"),
    "no scores": (("--prompts", "FILE", "--clips", "4"), {"teacher": "Broken"}, "but got some that are not finite"),
    "no difference": (
        ("--prompts", "FILE", "--clips", "4"), {"teacher": "Constant"}, "Expected a teacher whose scores differ",
    ),
    "no axes": (("--prompts", "FILE"), {"teacher": "no_axes"}, "a callable with named `axes`"),
    "no such name": (("--prompts", "FILE"), {"teacher": "Nobody"}, "cannot be imported"),
    "no such file": (("--prompts", "nowhere.txt"), {"teacher": "Brightness"}, "Expected a text file of prompts"),
    "unknown words": (("--prompts", "WORDS", "--clips", "4"), {"teacher": "Brightness"}, "but got 'zebra'"),
    "nothing left": (
        ("--prompts", "FILE", "--clips", "4", "--hold-out", "1"), {"teacher": "Brightness"}, "hold out less",
    ),
    "axes of its own": (
        ("--prompts", "FILE", "--axes", "TA"), {"teacher": "Brightness"}, "Expected no --axes beside --teacher",
    ),
    "prompts alone": (("--prompts", "FILE"), {}, "Expected --teacher NAME beside --prompts"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "more", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, tmp_path, capsys, options, more, message):
    (tmp_path / "words.txt").write_text("a red zebra\n")
    files = {"FILE": str(folder / "prompts.txt"), "WORDS": str(tmp_path / "words.txt")}
    teacher = [f"--teacher=module:{folder / 'teachers.py'}:{more['teacher']}"] if more else []
    options = [files.get(option, option) for option in options]
    where = ["--model", str(folder / "tiny"), "--out", str(tmp_path / "out"), *SHORT, *ENCODING, "--steps", "1"]
    assert cli.main(["train-reward", *teacher, *options, *where]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_bundled_prompts_are_those_of_a_split():
    from nrg_sampler.shapes.scenes import parse, split_of
    from nrg_sampler.training.distil import bundled_prompts

    for split in ("train", "validation", "test"):
        texts = bundled_prompts(split, 12)
        assert len(texts) == 12
        assert {split_of(parse(text)) for text in texts} == {split}
