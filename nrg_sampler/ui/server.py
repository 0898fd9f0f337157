"""Serve the page: which models, which folder for outputs, how it looks."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from nrg_sampler.checkpoints import BUNDLED, first_line
from nrg_sampler.files import is_stale, partial_path
from nrg_sampler.ui.address import bypass_proxy, check_address
from nrg_sampler.ui.endpoints import add_endpoints
from nrg_sampler.ui.engine import Engine, Model
from nrg_sampler.ui.handlers import Studio
from nrg_sampler.ui.page import Page
from nrg_sampler.ui.visits import Visits

HERE = Path(__file__).parent
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]  # of the visitor's machine: nothing is fetched from elsewhere
MONO = ["ui-monospace", "monospace"]
WAITING = 64  # requests that Gradio holds beyond those that are followed, before it turns one away


def build(engine: Engine, root: Path) -> gr.Blocks:
    """Return the page, not yet served.

    Args:
        engine: Samples.
        root: Folder for the outputs.
    """
    studio = Studio(engine, Visits(root, engine))
    blocks: gr.Blocks
    with gr.Blocks(title="nrg-sampler", analytics_enabled=False, delete_cache=(3600, 7200)) as blocks:
        add_endpoints(studio)  # first: a private handler of the same name would take the name
        Page(studio).build()
    blocks.queue(max_size=WAITING)
    return blocks


def launch(blocks: gr.Blocks, root: Path, **options: Any) -> Any:
    """Serve the page; of the machine's files, only those below ``root`` can be read from outside.

    Args:
        blocks: From :func:`build`.
        root: The same folder as there.
        **options: Passed to ``gr.Blocks.launch``, such as ``server_port``.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return blocks.launch(
        allowed_paths=[str(root)],
        app_kwargs={"middleware": [Middleware(NoUploads)]},
        max_file_size=1,  # byte, where something slips past it
        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO),
        css_paths=HERE / "page.css",
        head=f"<script>{script}</script>",
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        **options,
    )


class NoUploads:
    """Turn every upload away, the empty ones too, which Gradio stores whatever its limit: the page takes no files."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        app = self._app
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):
            app = PlainTextResponse("This page takes no files.", status_code=413)
        await app(scope, receive, send)


def serve(
    models: Sequence[Model] = (Model(BUNDLED),),
    device: str | None = None,
    server_name: str = "127.0.0.1",
    server_port: int | None = None,
    **options: Any,
) -> None:
    """Serve the page until the process is stopped, and delete all outputs then.

    Args:
        models: What the page offers, the default first.
        device: A torch device; CUDA if there is one by default.
        server_name: Host to listen on.
        server_port: Port to listen on; the first free one from 7860 on by default.
        **options: Passed to ``gr.Blocks.launch``.

    Raises:
        ValueError: If this machine cannot listen there.
        OSError: If Gradio cannot start for another reason.
    """
    server_name = check_address(server_name, server_port)
    bypass_proxy(server_name)
    with stopped_by_signals():
        root = _root()
        engine = Engine(tuple(models), device)
        engine.warm(next(iter(engine.models)))
        try:
            launch(build(engine, root), root, server_name=server_name, server_port=server_port, **options)
        except (ValueError, OSError):
            raise
        except Exception as error:  # whatever Gradio and httpx raise, down to a plain `Exception`
            raise OSError(
                f"Expected the page to start on {server_name}, but Gradio cannot: {first_line(error)}."
            ) from error
        finally:
            shutil.rmtree(root, ignore_errors=True)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end the process as Ctrl-C does, so that its files are deleted."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        names = []
    before = {name: signal.signal(getattr(signal, name), stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _root() -> Path:
    """Make the folder for the outputs, and remove those of pages that were killed."""
    temporary = Path(tempfile.gettempdir())
    for folder in temporary.glob("nrg-sampler-*@*.partial"):
        if is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)
    root = partial_path(temporary / f"nrg-sampler-{secrets.token_hex(8)}")
    root.mkdir(mode=0o700)
    return root.resolve()
