"""A vision-language model as a judge, against a real server on this machine that plays the model."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import DIGITS, Server, axis_of, distribution

from nrg_sampler import NRGFlowPipeline, attach, cli
from nrg_sampler.evaluation.panel import panel
from nrg_sampler.judges.base import Judge, chooser
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.lookahead import lookahead
from nrg_sampler.rewards.pixel import PixelReward
from nrg_sampler.search import best_of_n
from nrg_sampler.shapes.scenes import Prompt
from nrg_sampler.video import to_uint8, write_mp4

PROMPTS = ["a {red} circle", "two stars"]


def clips(length: int = 10) -> torch.Tensor:
    """Two clips, each frame of one grey, that of its number."""
    shades = (torch.arange(length) * 20 + 10) / 255
    return torch.stack([shades, 1 - shades])[:, None, :, None, None].expand(2, 3, length, 12, 16)


def decoded(part: dict[str, Any], kind: str) -> Any:
    head, _, data = part["image_url"]["url"].partition(",")
    assert part["type"] == "image_url" and head == f"data:image/{kind};base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert picture.format == kind.upper()
    return np.asarray(picture)


def test_grades_are_expected_values_over_the_digits(server: Server) -> None:
    judge = load_judge(server.name())
    assert isinstance(judge, Judge)
    scores = judge(clips(), PROMPTS, 5.0)
    expected = [
        sum(int(grade) * math.exp(value) for grade, value in distribution(digit, 1.0).items())
        for digit in DIGITS.values()
    ]
    torch.testing.assert_close(scores, torch.tensor([expected] * 2))
    assert len(server.requests) == 6 and not torch.equal(scores, scores.round())
    server.sharpness = 9.0
    torch.testing.assert_close(judge(clips(), PROMPTS, 5.0)[0], torch.tensor([4.0, 2.0, 5.0]), atol=1e-3, rtol=0)


def test_a_request_is_what_servers_take(server: Server) -> None:
    load_judge(server.name(frames=4, image="png"))(clips()[:1], PROMPTS[:1], 5.0)
    assert {axis_of(request) for request in server.requests} == set(DIGITS)
    request = next(request for request in server.requests if axis_of(request) == "TA")
    assert request["path"] == "/v1/chat/completions" and request["model"] == "tiny/model"
    assert (request["temperature"], request["max_tokens"], request["top_logprobs"]) == (0, 16, 20)
    first, *pictures, last = request["messages"][0]["content"]
    assert "4 frames of a video of 2.0 seconds" in first["text"] and "a {red} circle" in last["text"]
    shown = [decoded(part, "png") for part in pictures]
    assert [int(picture[0, 0, 0]) for picture in shown] == [10, 70, 130, 190]  # frames 0, 3, 6 and 9
    assert all((picture == picture[0, 0]).all() and picture.shape == (12, 16, 3) for picture in shown)


@pytest.mark.parametrize(("length", "count", "about"), [(1, 1, "a picture"), (2, 2, "2 frames"), (20, 8, "8 frames")])
def test_frames_are_at_most_eight_and_jpeg_by_default(server: Server, length: int, count: int, about: str) -> None:
    judge: Any = load_judge(server.name())
    judge(clips(12)[:1, :, :1].expand(-1, -1, length, -1, -1), ["x"], 10.0)
    first, *pictures, _ = server.requests[0]["messages"][0]["content"]
    assert len(pictures) == count and about in first["text"]
    assert abs(int(decoded(pictures[0], "jpeg")[0, 0, 0]) - 10) <= 2
    assert judge.frames_seen(length, 10.0) == count


def test_one_frame_may_be_enough(server: Server) -> None:
    load_judge(server.name(frames=1))(clips()[:1], ["x"], 10.0)
    first, *pictures, _ = server.requests[0]["messages"][0]["content"]
    assert len(pictures) == 1 and "the first frame of a video of 1.0 seconds" in first["text"]


@pytest.mark.parametrize("how", ["absent", "refused"])
def test_without_probabilities_the_digit_counts_and_is_warned_of_once(
    server: Server, how: str, recwarn: pytest.WarningsRecorder
) -> None:
    server.most, server.refuses_logprobs = None, how == "refused"
    judge = load_judge(server.name())
    with pytest.warns(UserWarning, match="gives no probabilities of tokens, so that grades are the whole digits"):
        scores = judge(clips(), PROMPTS, 5.0)
    assert scores.tolist() == [[4.0, 2.0, 5.0]] * 2
    before = len(server.requests)
    judge(clips(), PROMPTS, 5.0)
    assert len(server.requests) == before + 6  # what the server does not take is not tried again
    assert not recwarn.list


def test_a_server_that_gives_few_alternatives_is_asked_for_few(server: Server) -> None:
    server.most = 5
    scores = load_judge(server.name())(clips(), PROMPTS, 5.0)
    assert not torch.equal(scores, scores.round())
    assert {request.get("top_logprobs") for request in server.requests} == {20, 5}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vlm", "Expected a server and a model, as vlm:http://localhost:8000/v1#MODEL, but got 'vlm:'"),
        ("vlm:http://localhost:8000/v1", "Expected a server and a model"),
        ("vlm:#model", "Expected a server and a model"),
        ("vlm:localhost:8000/v1#model", "Expected a server's URL, as http://localhost:8000/v1, but got 'localhost"),
        ("vlm:file:///etc#model", "Expected a server's URL"),
        ("vlm:http://me:word@host/v1#model", "Expected a URL without a password, .* for host; put the key into the"),
        ("vlm:http://host/v1#model?frames=x", "Expected settings of a vlm judge from frames, .* but got 'frames=x'"),
        ("vlm:http://host/v1#model?speed=2", "but got 'speed=2'"),
        ("vlm:http://host/v1#model?frames=0", "Expected 1 frame or more as jpeg or png, but got 0"),
        ("vlm:http://host/v1#model?image=gif", "but got 8 as 'gif'"),
        ("vlm:http://host/v1#model?timeout=0", "Expected `timeout` above 0"),
        ("vlm:http://host/v1#model?timeout=nan", "Expected `timeout` above 0"),
        ("vlm:http://host/v1#model?retries=-1", "`retries` of 0 or more"),
        ("vlm:http://host/v1#model?key=NOT_SET_HERE", "in the environment variable NOT_SET_HERE, but it is not set"),
        ("vlm:http://host/v1#model?key=sk-123", "Expected the name of an environment variable as `key`, but got some"),
    ],
)
def test_a_name_that_does_not_fit_is_one_sentence(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        load_judge(name)
    assert "sk-123" not in str(caught.value) and "word@" not in str(caught.value)


def test_what_are_no_clips_is_refused_before_anything_is_asked(server: Server) -> None:
    judge = load_judge(server.name())
    with pytest.raises(ValueError, match="some pixels are NaN"):
        judge(clips() / 0, PROMPTS, 5.0)
    with pytest.raises(ValueError, match="Expected 2 prompts"):
        judge(clips(), PROMPTS[:1], 5.0)
    assert not server.requests


def test_it_grades_and_chooses_on_the_command_line_and_in_python(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = to_uint8(np.random.default_rng(0).random((6, 16, 16, 3)))
    write_mp4(frames, tmp_path / "a.mp4", 5)
    judge = ["--judge", server.name()]
    assert cli.main(["score", str(tmp_path / "a.mp4"), "--prompt", "a circle", *judge, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]["vlm"]
    assert scores.keys() == set(DIGITS) and 1 < scores["MQ"] < scores["VQ"] < scores["TA"] < 5
    score = chooser(load_judge(server.name()), 5.0, "VQ=1,TA=2")
    assert score(clips(), PROMPTS).tolist() == pytest.approx([scores["VQ"] + 2 * scores["TA"]] * 2, abs=1e-3)
    server.before = [404]
    assert cli.main(["score", str(tmp_path / "a.mp4"), "--prompt", "a circle", *judge]) != 0
    assert "Expected an answer of tiny/model" in capsys.readouterr().err


def test_it_grades_in_the_tables_of_evaluate(server: Server) -> None:
    graders = panel(["oracle", server.name()])
    scores = graders["vlm"](clips(), [Prompt("star", "green", "right", "plain")] * 2)
    assert scores.shape == (2, 3) and (scores[0] == scores[1]).all()
    asked = server.requests[0]["messages"][0]["content"][0]["text"]
    assert "8 frames of a video of" in asked


def test_the_best_of_several_is_what_it_grades_best(server: Server, wan: Any) -> None:
    pipe = NRGFlowPipeline.from_pipe(wan, None)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 5, "reward_scale": 0}
    server.sharpness = 0.0  # all alike
    score = chooser(load_judge(server.name(frames=2)), 5.0, "VQ=1,TA=2")
    found = best_of_n(pipe, "a red circle", 3, judge=score, **settings)
    assert len(server.requests) == 9 and found.scores.tolist() == pytest.approx([9.0])


def test_it_guides_by_look_ahead(server: Server, wan: Any) -> None:
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "num_frames": 5, "output_type": "latent"}
    with (
        pytest.warns(UserWarning, match="scored the same"),  # by the server, so that nothing pulls
        lookahead(wan, server.name(), samples=3, steps=2, weights="TA=1") as run,
    ):
        wan("a red circle", **settings)
    assert run.looks is not None and len(server.requests) == 9
    assert "frames of a video, evenly" in server.requests[0]["messages"][0]["content"][0]["text"]


def test_it_cannot_guide_by_a_gradient(server: Server, wan: Any) -> None:
    refused = "only judges, with --judge; a model behind a URL has no gradient, but can choose among samples, or guide"
    with pytest.raises(ValueError, match=refused), attach(wan, server.name()):
        pass
    judge = load_judge(server.name())
    refused = "Expected a judge with a gradient to guide with, but a model behind a URL has none; guide with one of"
    with pytest.raises(ValueError, match=refused), attach(wan, PixelReward(judge, wan.vae, judge.axes), scale=1.0):
        wan("a red circle", num_inference_steps=2, height=16, width=16, num_frames=5, output_type="latent")
    assert not server.requests
