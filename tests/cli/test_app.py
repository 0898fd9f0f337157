"""``nrg-sampler app``: what reaches the server, and bad input before there is one."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from nrg_sampler import cli
from nrg_sampler.ui.engine import Model


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the server, and with it gradio, by something that remembers what it was asked for."""
    asked: dict[str, Any] = {}
    server = types.ModuleType("nrg_sampler.ui.server")
    server.serve = lambda models, **options: asked.update(models=models, **options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, server.__name__, server)
    return asked


def test_the_options_reach_the_server(served: dict[str, Any]) -> None:
    assert (
        cli.main(["app", "--model", "my/wan", "--reward", "my/reward", "--port", "8000", "--auth", "me:my:word"]) == 0
    )
    assert served["models"] == [Model("my/wan", "my/reward"), Model("shapes")]
    assert (served["server_port"], served["server_name"], served["share"]) == (8000, "127.0.0.1", False)
    assert served["auth"] == ("me", "my:word")


def test_the_bundled_model_is_offered_once(served: dict[str, Any]) -> None:
    assert cli.main(["app", "--model", "shapes"]) == 0
    assert served["models"] == [Model("shapes")]
    assert cli.main(["app"]) == 0
    assert served["models"] == [Model("shapes")]
    assert served["auth"] is None


def test_a_reward_by_name_is_of_the_bundled_model_by_default(served: dict[str, Any]) -> None:
    assert cli.main(["app", "--reward", "aesthetic=1,clipscore=2"]) == 0
    assert served["models"] == [Model("shapes", "aesthetic=1,clipscore=2"), Model("shapes")]
    assert served["models"][0].name == "shapes with aesthetic=1,clipscore=2"


BAD = {
    "no colon": (["--auth", "secret"], "Expected --auth USER:PASSWORD"),
    "no password": (["--auth", "me:"], "Expected --auth USER:PASSWORD"),
    "a misspelt reward": (["--reward", "pickscor"], "did you mean 'pickscore'?"),
    "no such device": (["--device", "toaster"], "Expected a device that is present, but got 'toaster'"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    options: list[str], message: str, served: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["app", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nrg-sampler: error: ")
    assert message in line
    assert served == {}


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("nrg_sampler.ui.") or name.split(".")[0] == "gradio"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["app"]) == 2
    assert 'pip install "nrg-sampler[app]"' in capsys.readouterr().err
