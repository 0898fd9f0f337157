"""``nrg-sampler app``: the web page."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nrg_sampler.ui.engine import Model

HELP = "Open the web page: sliders, the same seed without and with the reward, and what the guidance did."
EXAMPLE = "app --port 7860"
REWARD_HELP = "its reward, as `generate` takes it, by default of the bundled model (default: the one with it)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="offer this folder or Hub id too, before the bundled model")
    parser.add_argument("--reward", metavar="NAME", help=REWARD_HELP)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)")
    parser.add_argument("--share", action="store_true", help="make a public link through gradio.live")
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for this name and password")


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.runs.device import require_device
    from nrg_sampler.ui.address import check_address

    login = _login(arguments.auth)
    check_address(arguments.host, arguments.port)  # before seconds of imports
    models = _models(arguments.model, arguments.reward)
    device = require_device(arguments.device) if arguments.device else None
    try:
        from nrg_sampler.ui.server import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError('Expected gradio for the page, but it is missing: pip install "nrg-sampler[app]"') from error
    serve(
        models,
        device=device,
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        auth=login,
    )
    return 0


def _login(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ValueError("Expected --auth USER:PASSWORD, but got no colon between two words.")
    return user, password


def _models(model: str | None, reward: str | None) -> list[Model]:
    from nrg_sampler.checkpoints import BUNDLED
    from nrg_sampler.rewards.by_name import require_known
    from nrg_sampler.ui.engine import Model

    require_known(reward)
    bundled = Model(BUNDLED)
    chosen = Model(model or BUNDLED, reward)
    return [bundled] if chosen == bundled else [chosen, bundled]
