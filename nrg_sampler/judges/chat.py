"""Ask a model behind an OpenAI-compatible chat-completions URL, and read a grade from 1 to 5 out of its answer.

Only Python's standard library is used. A request is repeated where the server is busy, out of reach or slow; redirects
are not followed, so that the key is sent nowhere but to the URL that was named.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from nrg_sampler.json_text import to_json

DEFAULT_KEY = "VLM_API_KEY"
GRADES = ("1", "2", "3", "4", "5")
PATH = "/chat/completions"
# How many alternatives to a token are asked for; a server that takes no such number answers 400, and gets the next.
ALTERNATIVES: tuple[int | None, ...] = (20, 5, None)
BUSY = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT = 30.0  # seconds, whatever the server says
MOST_BYTES = 2**24  # of an answer
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OUT_OF = re.compile(r"(/|\bout of|\bof)\s*5\b(?!\.\d)")  # as in 4/5


class Grade(NamedTuple):
    """What an answer says.

    Args:
        value: From 1 to 5.
        expected: Whether it is the expected value over the tokens "1" to "5", or else the digit as it was written.
    """

    value: float
    expected: bool


class _Refused(Exception):
    """The server does not take the request as it is: 400 or 422."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


@dataclass
class ChatModel:
    """A model behind a URL.

    Args:
        url: Of the server, up to ``/v1``.
        name: What the server calls the model.
        key: Environment variable with the API key. By default ``VLM_API_KEY``, if that is set; another has to be set.
        timeout: Seconds to wait for an answer.
        retries: How often a request is repeated.
        wait: Seconds before it is repeated first, doubled each time.
        tokens: The most that an answer may have.

    Raises:
        ValueError: If the URL is none or holds a password, the key is not set, or a number is out of range.
    """

    url: str
    name: str
    key: str = DEFAULT_KEY
    timeout: float = 60.0
    retries: int = 3
    wait: float = 0.5
    tokens: int = 16

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"Expected a server's URL, as http://localhost:8000/v1, but got {self.url!r}; write vlm:URL#MODEL."
            )
        if parts.username or parts.password:
            raise ValueError(
                f"Expected a URL without a password, for manifests show it, but got one for {parts.hostname}; put the "
                f"key into the environment variable {DEFAULT_KEY}."
            )
        if not VARIABLE.fullmatch(self.key):  # which could be a key itself, so that it is not shown
            raise ValueError(
                "Expected the name of an environment variable as `key`, but got something else; put the key into one, "
                f"such as {DEFAULT_KEY}, and name that."
            )
        if self.key != DEFAULT_KEY and not os.environ.get(self.key):
            raise ValueError(
                f"Expected the API key in the environment variable {self.key}, but it is not set; export it first."
            )
        if not (0 < self.timeout < math.inf and 0 <= self.wait < math.inf and self.retries >= 0 and self.tokens >= 1):
            raise ValueError(
                "Expected `timeout` above 0, `wait` and `retries` of 0 or more and `tokens` of 1 or more, but got "
                f"{self.timeout}, {self.wait}, {self.retries} and {self.tokens}; correct them."
            )
        base = self.url.rstrip("/")
        self._place = base if base.endswith(PATH) else base + PATH
        self._alternatives = 0  # which of ALTERNATIVES the server takes
        self._opener = urllib.request.build_opener(_NoRedirect)

    def grade(self, content: Sequence[Mapping[str, Any]], what: str) -> Grade:
        """Ask for a grade.

        Args:
            content: Texts and pictures of one message.
            what: What is graded, for messages.

        Raises:
            ValueError: If the server cannot be reached, refuses, or answers no grade.
        """
        answer = self._choice(content)
        message = answer["message"]
        if message.get("refusal"):
            raise ValueError(self._no_grade(what, f"it refused ({_short(message['refusal'])})"))
        text = message.get("content")
        if not isinstance(text, str) or (value := grade_in(text)) is None:
            cut = answer.get("finish_reason") == "length"
            said = "its answer was cut off before one" if cut else f"it wrote {_short(str(text))!r}"
            raise ValueError(self._no_grade(what, said, cut))
        expected = expected_grade(answer.get("logprobs"), value)
        return Grade(value, False) if expected is None else Grade(expected, True)

    def _no_grade(self, what: str, said: str, cut: bool = False) -> str:
        advice = f"allow more than {self.tokens} with `tokens=`" if cut else "name a model that answers in one digit"
        return f"Expected a digit from 1 to 5 for {what} from {self.name}, but {said}; {advice}."

    def _choice(self, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the first choice of an answer, with as many alternatives to its tokens as the server gives."""
        while True:
            number = self._alternatives
            wanted = ALTERNATIVES[number]
            body: dict[str, Any] = {
                "model": self.name,
                "messages": [{"role": "user", "content": list(content)}],
                "temperature": 0,
                "max_tokens": self.tokens,
            }
            if wanted is not None:
                body |= {"logprobs": True, "top_logprobs": wanted}
            try:
                return self._first_choice(self._post(to_json(body).encode()))
            except _Refused as error:
                if wanted is None:
                    raise ValueError(
                        f"Expected {self.url} to take a question with pictures for {self.name}, but it answered "
                        f"{error}; name a model that looks at pictures, or fewer `frames=`."
                    ) from error
                self._alternatives = max(self._alternatives, number + 1)

    def _first_choice(self, reply: bytes) -> dict[str, Any]:
        try:
            choice: dict[str, Any] = json.loads(reply)["choices"][0]
            choice["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected an answer in the form of OpenAI's chat completions from {self.url}, but got "
                f"{_short(reply.decode(errors='replace'))!r}; check that the URL ends in /v1."
            ) from error
        return choice

    def _post(self, body: bytes) -> bytes:
        """Send a request, again where that may help.

        Raises:
            _Refused: If the server does not take it as it is.
            ValueError: If it cannot be had for another reason.
        """
        reason = ""
        for attempt in range(self.retries + 1):
            pause = self.wait * 2**attempt
            try:
                with self._opener.open(self._request(body), timeout=self.timeout) as reply:
                    return bytes(reply.read(MOST_BYTES))
            except urllib.error.HTTPError as error:
                said = f"{error.code} {_message(error)}"
                if error.code in (400, 422):
                    raise _Refused(said) from error
                if error.code not in BUSY:
                    raise ValueError(self._unusable(error.code, said)) from error
                reason, pause = said, max(pause, _seconds(error.headers.get("Retry-After")))
            except (OSError, HTTPException) as error:  # no connection, a broken one, no answer in time
                slow = isinstance(getattr(error, "reason", error), TimeoutError)
                reason = f"no answer in {self.timeout:g} s" if slow else _short(str(getattr(error, "reason", error)))
            if attempt < self.retries:
                time.sleep(min(pause, LONGEST_WAIT))
        raise ValueError(
            f"Expected an answer from {self.url}, but got {reason} in {self.retries + 1} tries; start the server, or "
            "allow more with `timeout=` and `retries=`."
        )

    def _request(self, body: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if secret := os.environ.get(self.key):
            headers["Authorization"] = f"Bearer {secret}"
        return urllib.request.Request(self._place, data=body, headers=headers)

    def _unusable(self, code: int, said: str) -> str:
        advice = "check the URL and the name of the model"
        if code in (401, 403):
            advice = f"put its key into the environment variable {self.key}, or name another by `key=`"
        return f"Expected an answer of {self.name} from {self.url}, but got {said}; {advice}."


def grade_in(text: str) -> float | None:
    """Return the only number in a text, if it is from 1 to 5."""
    found = set(NUMBER.findall(OUT_OF.sub("", text)))
    value = float(found.pop()) if len(found) == 1 else math.nan
    return value if 1 <= value <= 5 else None


def expected_grade(logprobs: Any, written: float) -> float | None:
    """Return the expected value over the tokens "1" to "5" where the grade was written.

    Args:
        logprobs: The section of that name, as OpenAI's servers and vLLM's write it.
        written: The grade in the text.

    Returns:
        ``None`` where there is no such section, or the grade is no token of its own.
    """
    try:
        places = [place for place in logprobs["content"] if str(place["token"]).strip() == f"{written:g}"]
        every = [*places[-1].get("top_logprobs", []), places[-1]]
        alternatives = {str(one["token"]): float(one["logprob"]) for one in every}
    except (LookupError, TypeError, ValueError):
        return None
    shares = {
        token: math.exp(min(0.0, value))
        for token, value in alternatives.items()
        if token.strip() in GRADES and math.isfinite(value)
    }
    total = math.fsum(shares.values())
    if not total > 0:
        return None
    return math.fsum(int(token) * share for token, share in shares.items()) / total


def _message(error: urllib.error.HTTPError) -> str:
    """Return what the body of an error says."""
    try:
        body = error.read(2**16)
    except (OSError, HTTPException):
        return error.reason
    try:
        found = json.loads(body)
        found = found.get("error", found)
        return _short(str(found if isinstance(found, str) else found["message"]))
    except (ValueError, LookupError, TypeError, AttributeError):
        return _short(body.decode(errors="replace")) or str(error.reason)


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:  # a date
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]} ..."
