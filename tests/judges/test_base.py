"""Judges by name, and the commands that ask them."""

from __future__ import annotations

import json
import random

import pytest
import torch

from nrg_sampler import cli
from nrg_sampler.evaluation.panel import panel
from nrg_sampler.judges.base import Judge, chooser
from nrg_sampler.judges.loading import JUDGES, judge_identity, load_judge
from nrg_sampler.judges.shapes import OracleJudge
from nrg_sampler.shapes.oracle import grade
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import Prompt, caption, sample_scene
from nrg_sampler.video import enlarge, to_uint8, write_mp4

STAR = Prompt("star", "green", "right", "plain")
ASKED = caption(STAR)


@pytest.fixture(scope="module")
def clips():
    """Two clips of a green star moving right, shape (2, 3, T, H, W)."""
    return render(draw([sample_scene(STAR, random.Random(seed)) for seed in range(2)]))


class Brightness:
    """Counts how it is called."""

    axes = ("light", "dark")

    def __init__(self):
        self.calls, self.scores = [], None

    def __call__(self, clips, prompts, fps):
        self.calls.append((tuple(clips.shape), list(prompts), fps))
        if self.scores is not None:
            return self.scores
        light = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack([light, 1 - light], dim=1)


@pytest.fixture
def brightness(monkeypatch):
    """A judge that the command line knows as ``brightness``."""
    found = Brightness()
    monkeypatch.setitem(JUDGES, "brightness", lambda source, device: found)
    return found


def test_the_oracle_judge_is_the_oracle(clips):
    oracle = load_judge("oracle")
    assert isinstance(oracle, Judge)
    assert torch.equal(oracle(clips, [ASKED] * 2, 8.0), grade(clips, [STAR] * 2))


def test_says_what_is_wrong(clips):
    with pytest.raises(ValueError, match="Expected a judge from oracle, .*, module, pickscore, .*, but got 'nobody'"):
        load_judge("nobody")
    with pytest.raises(ValueError, match="config.json in the local cache of KwaiVGI/VideoReward, but it is not"):
        load_judge("videoreward")
    with pytest.raises(ValueError, match="Expected 'oracle' alone, but got 'oracle:folder'"):
        load_judge("oracle:folder")
    with pytest.raises(
        ValueError, match="Expected a prompt of the bundled world for the oracle, but got 'the weather'"
    ):
        OracleJudge()(clips, [ASKED, "the weather"], 8.0)


def test_a_saved_pixel_judge_grades_in_its_standard_deviations(clips, tmp_path):
    from nrg_sampler.shapes.judge import PixelJudge

    words = sorted(set(ASKED.split()))
    network = PixelJudge(words=words, widths=(8, 8), dim=16, num_heads=2, depth=1, mean=(1.0,) * 3, std=(2.0,) * 3)
    network.save_pretrained(tmp_path)
    found = load_judge(f"pixel:{tmp_path}")(clips, [ASKED] * 2, 8.0)
    with torch.no_grad():
        torch.testing.assert_close(found, (network.eval()(clips, [ASKED] * 2) - 1) / 2, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="Expected a pixel judge in nowhere, but found none"):
        load_judge("pixel:nowhere")


def test_a_judge_of_ones_own_is_found_in_a_file_or_a_module(clips, tmp_path, monkeypatch):
    (tmp_path / "own_judges.py").write_text(
        "import torch\n"
        "class Frames(torch.nn.Module):\n"
        "    axes = ('light',)\n"
        "    def forward(self, clips):\n"
        "        return clips.mean(dim=(1, 2, 3, 4))[:, None]\n"
        "class Length:\n"
        "    axes = ('length',)\n"
        "    def __call__(self, clips, prompts, fps):\n"
        "        return torch.tensor([[fps * len(prompt)] for prompt in prompts])\n"
        "length = Length()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = f"module:{tmp_path / 'own_judges.py'}"
    light = load_judge(f"{file}:Frames")
    assert light.axes == ("light",)
    torch.testing.assert_close(light(clips, [ASKED] * 2, 8.0)[:, 0], clips.mean(dim=(1, 2, 3, 4)))
    assert load_judge("module:own_judges:length")(clips, ["a", "bb"], 8.0).tolist() == [[8.0], [16.0]]
    before = judge_identity(f"{file}:Frames")
    assert judge_identity(f"{file}:Length") != before
    with open(tmp_path / "own_judges.py", "a") as code:
        code.write("# changed\n")
    assert judge_identity(f"{file}:Frames") != before


def test_tables_take_the_judges_that_grade_their_axes(clips, brightness):
    with pytest.raises(ValueError, match="'brightness' grades light, dark and not VQ, MQ, TA; grade videos by it"):
        panel(["oracle", "brightness"])
    with pytest.raises(ValueError, match="Expected judges from oracle, .*, pickscore, .*, but got nobody"):
        panel(["nobody"])
    brightness.axes = ("TA", "light", "MQ", "VQ")  # in any order, and more besides
    brightness.scores = torch.tensor([[3.0, 9.0, 2.0, 1.0]]).expand(2, -1)
    found = panel(["oracle", "brightness"])
    assert torch.equal(found["oracle"](clips, [STAR] * 2), grade(clips, [STAR] * 2))
    assert found["brightness"](clips, [STAR] * 2).tolist() == [[1.0, 2.0, 3.0]] * 2
    assert brightness.calls == [((2, 3, 13, 64, 64), [ASKED] * 2, 8.0)]


def test_a_chooser_weighs_the_axes(clips):
    weighted = chooser(Brightness(), 8.0, weights="light=2,dark=1")
    light = clips.mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(weighted(clips, [ASKED] * 2), 2 * light + 1 - light)


def test_score_reads_the_prompt_and_the_rate(clips, brightness, tmp_path, capsys):
    frames = to_uint8(clips[0].permute(1, 2, 3, 0).numpy())
    write_mp4(enlarge(frames), tmp_path / "star.mp4", fps=8)
    options = ["--prompt", ASKED, "--judge", "brightness", "--judge", "oracle", "--json", "--device", "cpu"]
    assert cli.main(["score", str(tmp_path / "star.mp4"), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"].keys() == {"brightness", "oracle"}
    assert found["scores"]["oracle"]["TA"] > 0.7
    assert brightness.calls == [((1, 3, 13, 256, 256), [ASKED], 8.0)]
    assert (
        cli.main(["score", str(tmp_path / "star.mp4"), "--prompt", ASKED, "--fps", "24", "--judge", "brightness"]) == 0
    )
    assert brightness.calls[-1][2] == 24.0
    assert "brightness  light 0." in capsys.readouterr().out


def test_a_video_that_was_generated_is_scored_as_it_was_sampled(brightness, tmp_path, capsys):
    video = tmp_path / "star.mp4"
    assert cli.main(["generate", ASKED, "--steps", "2", "--judge", "brightness", "--out", str(video)]) == 0
    manifest = json.loads(video.with_suffix(".json").read_text())
    sampled = manifest["clips"][0]["scores"]["brightness"]
    capsys.readouterr()
    assert cli.main(["score", str(video), "--judge", "brightness", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == ASKED
    assert brightness.calls[0] == brightness.calls[1] == ((1, 3, 13, 64, 64), [ASKED], 8.0)
    assert found["scores"]["brightness"] == pytest.approx(sampled, abs=0.01)  # the file is compressed


def test_compare_says_what_changed_by_the_judge(brightness, tmp_path, capsys):
    video = tmp_path / "pair.mp4"
    assert cli.main(["compare", ASKED, "--steps", "2", "--judge", "brightness", "--out", str(video)]) == 0
    assert "brightness  light " in capsys.readouterr().out
    assert cli.main(["score", str(video), "--judge", "brightness"]) == 2
    assert "shows several side by side; their scores are in pair.json already" in capsys.readouterr().err


BAD = {
    "no prompt": (["star.mp4"], "Expected --prompt, for there is no manifest beside star.mp4"),
    "no video": (["none.mp4", "--prompt", "x"], "Expected a video file, but none.mp4 does not exist"),
    "no judge": (
        ["star.mp4", "--prompt", "x", "--judge", "nobody"], "Expected a judge from oracle, pixel, videoreward",
    ),
    "no folder": (
        ["star.mp4", "--prompt", "x", "--judge", "videoreward:nowhere"], "Expected a folder in 'videoreward:nowhere'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["score", *options, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
