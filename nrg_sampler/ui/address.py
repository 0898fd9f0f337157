"""Where the page listens: found out before a model is loaded, so that what cannot be is one sentence."""

from __future__ import annotations

import os
import socket

LOCAL = ("localhost", "127.0.0.1", "::1")


def check_address(host: str, port: int | None) -> str:
    """Prove that this machine can listen there.

    Args:
        host: A name or an address of this machine; an IPv6 address may stand in brackets.
        port: In [1, 65535]; ``None`` for any.

    Returns:
        The host as it stands in a URL: an IPv6 address in brackets.

    Raises:
        ValueError: If the host is unknown or another machine's, or the port is taken, reserved or none.
    """
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"Expected a port from 1 to 65535, but got {port}.")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # a name that is too long is the latter
        raise ValueError(f"Expected a host of this machine, but got {host!r}, which is not known: {error}.") from error
    family, kind, protocol, _, place = found[0]
    try:
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        where = f"{host} and port {port}" if port else host
        raise ValueError(
            f"Expected to listen on {where}, but this machine cannot: {error.strerror}; choose another --port, or "
            "--host 127.0.0.1 for this machine only."
        ) from error
    return f"[{bare}]" if family == socket.AF_INET6 and ":" in bare else bare


def bypass_proxy(host: str) -> None:
    """Let this process reach itself past a proxy of the environment: Gradio asks its own page whether it is there."""
    for name in ("no_proxy", "NO_PROXY"):
        before = [entry for entry in os.environ.get(name, "").split(",") if entry.strip()]
        os.environ[name] = ",".join(dict.fromkeys([*before, *LOCAL, host.strip("[]")]))
