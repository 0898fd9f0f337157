"""A server on this machine that plays a vision-language model behind an OpenAI-compatible URL."""

from __future__ import annotations

import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from nrg_sampler.judges.vlm import QUESTIONS

DIGITS = {"VQ": 4, "MQ": 2, "TA": 5}


class Server(ThreadingHTTPServer):
    """Plays a model: grades each axis by DIGITS, after whatever a test wants to happen before.

    ``before`` holds one status code for each of the first requests, or the seconds to be silent for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.before: list[float] = []
        self.body: Any = None  # instead of an answer
        self.most: int | None = 20  # alternatives to a token, None for none
        self.refuses_logprobs = False
        self.retry_after = ""
        self.sharpness = 1.0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a client that waited no longer leave without a word."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def name(self, **settings: Any) -> str:
        chosen = "&".join(f"{key}={value}" for key, value in {"wait": 0.01, **settings}.items())
        return f"vlm:{self.url}#tiny/model?{chosen}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({**request, "path": self.path})
            self.server.headers.append(dict(self.headers))
            trouble = self.server.before.pop(0) if self.server.before else 0
        if 0 < trouble < 100:
            time.sleep(trouble)
        elif trouble:
            return self.reply(int(trouble), {"error": {"message": f"trouble {trouble:.0f}"}})
        if request.get("logprobs") and (
            self.server.refuses_logprobs or request["top_logprobs"] > (self.server.most or 99)
        ):
            return self.reply(400, {"error": {"message": "too many logprobs"}})
        return self.reply(200, self.server.body if self.server.body is not None else answer(self.server, request))

    def reply(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"{self.server.url}/elsewhere")
        if code == 429 and self.server.retry_after:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def axis_of(request: dict[str, Any]) -> str:
    question = request["messages"][0]["content"][-1]["text"]
    return next(axis for axis, text in QUESTIONS.items() if question.startswith(text.partition("{")[0]))


def distribution(digit: int, sharpness: float) -> dict[str, float]:
    logits = {str(grade): -sharpness * abs(grade - digit) for grade in range(1, 6)}
    total = math.log(sum(math.exp(value) for value in logits.values()))
    return {grade: value - total for grade, value in logits.items()}


def answer(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    digit = DIGITS[axis_of(request)]
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": f" {digit}"}, "finish_reason": "stop"}
    if request.get("logprobs") and server.most is not None:
        shares = distribution(digit, server.sharpness)
        top = [{"token": f" {grade}", "logprob": value} for grade, value in shares.items()]
        noise = [{"token": "good", "logprob": -3.0}, {"token": "7", "logprob": -4.0}]
        place = {"token": f" {digit}", "logprob": shares[str(digit)], "top_logprobs": [*top, *noise]}
        choice["logprobs"] = {"content": [place, {"token": "<end>", "logprob": 0.0, "top_logprobs": []}]}
    return {"choices": [choice]}
