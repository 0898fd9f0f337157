"""Serve the page: which models, which folder for outputs, how it looks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from nrg_sampler.checkpoints import BUNDLED
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
        max_file_size=1,  # byte: nothing is ever uploaded
        theme=gr.themes.Base(primary_hue="indigo", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO),
        css_paths=HERE / "page.css",
        head=f"<script>{script}</script>",
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        **options,
    )


def serve(models: Sequence[Model] = (Model(BUNDLED),), device: str | None = None, **options: Any) -> None:
    """Serve the page until the process is stopped, and delete all outputs then.

    Args:
        models: What the page offers, the default first.
        device: A torch device; CUDA if there is one by default.
        **options: Passed to ``gr.Blocks.launch``.
    """
    root = Path(tempfile.mkdtemp(prefix="nrg-sampler-")).resolve()
    engine = Engine(tuple(models), device)
    engine.warm(next(iter(engine.models)))
    try:
        launch(build(engine, root), root, **options)
    finally:
        shutil.rmtree(root, ignore_errors=True)
