from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from nrg_sampler import files
from nrg_sampler.ui.address import bypass_proxy, check_address


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_an_address_of_this_machine_is_taken_as_it_is(host: str) -> None:
    assert check_address(host, None) == host


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize(("host", "expected"), [("::", "[::]"), ("[::1]", "[::1]")])
def test_an_address_of_ipv6_stands_in_brackets(host: str, expected: str) -> None:
    assert check_address(host, None) == expected


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match=f"Expected a port from 1 to 65535, but got {port}"):
        check_address("127.0.0.1", port)


@pytest.mark.parametrize("host", ["not.a.host.invalid", "a" * 300, "\0", "300.1.1.1"])
def test_an_unknown_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="Expected a host of this machine, but got"):
        check_address(host, None)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(
        ValueError, match="Expected to listen on 192.0.2.1, but this machine cannot: .*--host 127.0.0.1"
    ):
        check_address("192.0.2.1", None)  # reserved for documentation


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            ValueError, match=f"Expected to listen on 127.0.0.1 and port {port}, but this machine cannot"
        ):
            check_address("127.0.0.1", port)


def test_this_machine_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "intranet")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    bypass_proxy("[::]")
    assert os.environ["no_proxy"] == "intranet,localhost,127.0.0.1,::1,::"
    client = httpx.Client()
    for url in ("http://127.0.0.1:7860/", "http://localhost/", "http://[::]:7860/"):
        assert client._transport_for_url(httpx.URL(url)) is client._transport
    assert client._transport_for_url(httpx.URL("http://elsewhere.org/")) is not client._transport
    client.close()


PAGE = """
import sys, time
from unittest.mock import MagicMock
for name in ("gradio", "gradio.data_classes", "gradio.events"):  # they take seconds to import
    sys.modules[name] = MagicMock()
from nrg_sampler.ui import server
server.Engine = lambda *_: type("Engine", (), {"models": {"a": 0}, "warm": lambda *_: None})()
server.build = lambda engine, root: (root / "clip.mp4").write_text("a visitor's")
def launch(blocks, root, **options):
    print(root, flush=True)
    time.sleep(60)
server.launch = launch
server.serve()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are those of Unix")
def test_a_page_that_is_ended_leaves_no_outputs(tmp_path: Path) -> None:
    """SIGKILL cannot be heard; what it leaves is removed by the next page."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pages = {
        name: subprocess.Popen([sys.executable, "-c", PAGE], env=environment, stdout=subprocess.PIPE, text=True)
        for name in ("SIGTERM", "SIGKILL")
    }
    for name, page in pages.items():
        assert page.stdout is not None
        root = Path(page.stdout.readline().strip())
        assert (root / "clip.mp4").is_file()
        page.send_signal(getattr(signal, name))
        page.wait(30)
        page.stdout.close()
        assert root.exists() == (name == "SIGKILL")
    assert files.is_stale(root)
