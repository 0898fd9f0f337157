"""What goes wrong with a server, and what of an answer is the grade."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_vlm import Server

from nrg_sampler.judges.chat import expected_grade, grade_in
from nrg_sampler.judges.loading import judge_identity, load_judge
from nrg_sampler.judges.vlm import QUESTIONS

CLIP, PROMPT = torch.full((1, 3, 2, 8, 8), 0.5), ["x"]


@pytest.mark.parametrize("trouble", [500, 503, 429, 408])
def test_a_busy_server_is_asked_again(server: Server, trouble: int) -> None:
    server.before = [trouble] * 2
    scores = load_judge(server.name())(CLIP, PROMPT, 5.0)
    assert scores.shape == (1, 3) and len(server.requests) == 5


def test_the_wait_doubles_and_is_what_the_server_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("nrg_sampler.judges.chat.time.sleep", slept.append)
    judge: Any = load_judge(server.name(wait=0.5))
    content = [{"type": "text", "text": QUESTIONS["VQ"]}]
    server.before = [500, 500, 500]
    assert judge.model.grade(content, "VQ").expected
    assert slept == [0.5, 1.0, 2.0]
    for said, wait in (("7", 7.0), ("1e9", 30.0), ("nan", 0.5), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.5), ("0", 0.5)):
        server.before, server.retry_after = [429], said
        judge.model.grade(content, "VQ")
        assert slept[-1] == wait


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ([500] * 99, "Expected an answer from http://.*/v1, but got 500 trouble 500 in 2 tries; start the server"),
        ([0.6] * 99, "but got no answer in 0.2 s in 2 tries; .* allow more with `timeout=`"),
        ([401], "but got 401 trouble 401; put its key into the environment variable VLM_API_KEY"),
        ([404], "Expected an answer of tiny/model from .*, but got 404 trouble 404; check the URL and the name"),
        ([302], "but got 302 trouble 302; check the URL"),
        ([422] * 99, "to take a question with pictures for tiny/model, but it answered 422 trouble 422; name a model"),
    ],
)
def test_trouble_that_stays_is_one_sentence(server: Server, before: list[float], message: str) -> None:
    server.before = before
    with pytest.raises(ValueError, match=message):
        load_judge(server.name(retries=1, timeout=0.2))(CLIP, PROMPT, 5.0)
    assert not [request for request in server.requests if "elsewhere" in request["path"]]


def test_a_server_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    gone = Server()
    gone.server_close()
    with pytest.raises(ValueError, match="but got .*refused.* in 2 tries; start the server"):
        load_judge(gone.name(retries=1))(CLIP, PROMPT, 5.0)


def message(**parts: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **parts}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>hello</html>", "in the form of OpenAI's chat completions from .*, but got '<html>hello</html>'"),
        (b"\xff\xfe", "in the form of OpenAI's chat completions"),
        ([], "in the form of OpenAI's chat completions"),
        ({"choices": []}, r"but got '{\"choices\": \[\]}'; check that the URL ends in /v1"),
        ({"choices": [{"message": "4"}]}, "in the form of OpenAI's chat completions"),
        (message(content=None, refusal="I cannot."), r"a digit from 1 to 5 for (VQ|MQ|TA) .* it refused \(I cannot"),
        (message(content="I am sorry, I cannot."), "it wrote 'I am sorry, I cannot.'; name a model that answers in"),
        (message(content="between 3 and 4"), "but it wrote 'between 3 and 4'"),
        (message(content="9"), "but it wrote '9'"),
        (message(content=None), "but it wrote 'None'"),
        (
            {"choices": [{"message": {"content": "Well, let me"}, "finish_reason": "length"}]},
            "its answer was cut off before one; allow more than 16 with `tokens=`",
        ),
    ],
)
def test_an_answer_that_is_no_grade_is_one_sentence(server: Server, body: Any, text: str) -> None:
    server.body = body
    with pytest.raises(ValueError, match=text):
        load_judge(server.name())(CLIP, PROMPT, 5.0)


def test_after_a_failure_the_rest_is_not_asked(server: Server) -> None:
    server.before = [404] * 999
    with pytest.raises(ValueError, match="404"):
        load_judge(server.name())(CLIP.expand(40, -1, -1, -1, -1), PROMPT * 40, 5.0)
    assert len(server.requests) < 60


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    load_judge(server.name())(CLIP, PROMPT, 5.0)
    assert not [headers for headers in server.headers if "Authorization" in headers]
    monkeypatch.setenv("VLM_API_KEY", "secret")
    load_judge(server.name())(CLIP, PROMPT, 5.0)
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("MINE", "other")
    load_judge(server.name(key="MINE"))(CLIP, PROMPT, 5.0)
    assert server.headers[-1]["Authorization"] == "Bearer other"
    assert judge_identity(server.name()).startswith(f"{server.name()} ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4), (" 5\n", 5), ("4/5", 4), ("4 out of 5", 4), ("5 out of 5", 5), ("Score: 3.", 3), ("**2**", 2),
        ("3.5", 3.5), ("3 ... 3", 3), ("0", None), ("6", None), ("45", None), ("", None),
        ("four", None), ("1-5", None),
    ],
)  # fmt: skip
def test_the_only_number_in_a_text_is_the_grade(text: str, value: float | None) -> None:
    assert grade_in(text) == value


def place(token: str, **top: float) -> dict[str, Any]:
    return {"token": token, "logprob": -0.1, "top_logprobs": [{"token": k, "logprob": v} for k, v in top.items()]}


@pytest.mark.parametrize("broken", [None, {}, {"content": None}, {"content": [{}]}, {"content": [place("x")]}, "x"])
def test_probabilities_that_are_none_give_no_expected_value(broken: Any) -> None:
    assert expected_grade(broken, 4.0) is None


def test_the_grade_is_read_where_it_was_written_last() -> None:
    thought = [place("4", **{"1": -0.1}), place("so"), {**place("4"), "logprob": math.log(0.5)}]
    thought[-1]["top_logprobs"] = [
        {"token": "2", "logprob": math.log(0.25)},
        {"token": " 2", "logprob": -9999.0},
        {"token": "3", "logprob": float("nan")},
    ]
    assert expected_grade({"content": thought}, 4.0) == pytest.approx((4 * 0.5 + 2 * 0.25) / 0.75)
