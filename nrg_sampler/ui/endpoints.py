"""The named endpoints: what ``gradio_client`` sees and can call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api as add_endpoint

from nrg_sampler.ui import api
from nrg_sampler.ui.handlers import Studio
from nrg_sampler.ui.widgets import RUNS, visit_name

Entries = dict[str, Any]


def add_endpoints(studio: Studio) -> None:
    """Add ``/generate``, ``/compare`` and ``/sweep`` to the ``gr.Blocks`` that is open."""
    model = next(iter(studio.engine.models))

    def generate(
        request: gr.Request,
        prompt: str,
        weights: str = "1:1:1",
        strength: float = 1.0,
        steps: int = 25,
        cfg: float = 4.0,
        seed: int = 0,
        settings: Entries = {},  # noqa: B006  Gradio shows it as the default, and nobody changes it
        model: str = model,
    ) -> tuple[FileData, Entries]:
        """Sample a video guided by the reward.

        Returns the mp4 and its manifest. `settings` may hold any further setting of the guidance, such as stop or
        floor, and scheduler.
        """
        video, manifest = _answer(api.generate, studio, request, locals())
        return _file(video), manifest

    def compare(
        request: gr.Request,
        prompt: str,
        weights: str = "1:1:1",
        strength: float = 1.0,
        steps: int = 25,
        cfg: float = 4.0,
        seed: int = 0,
        settings: Entries = {},  # noqa: B006
        model: str = model,
    ) -> tuple[FileData, FileData, FileData, Entries]:
        """Sample the same seed without and with the reward.

        Returns the unguided mp4, the guided one, both side by side and their manifest. `settings` as in /generate.
        """
        unguided, guided, both, manifest = _answer(api.compare, studio, request, locals())
        return _file(unguided), _file(guided), _file(both), manifest

    def sweep(
        request: gr.Request,
        prompt: str,
        fineness: int = 2,
        strength: float = 1.0,
        steps: int = 25,
        cfg: float = 4.0,
        seed: int = 0,
        settings: Entries = {},  # noqa: B006
        model: str = model,
    ) -> tuple[list[FileData], list[Entries]]:
        """Sample one seed with weights from all over the triangle: 6 clips with fineness 2, 15 with 4.

        Returns the mp4s and their manifests, which hold the weights. `settings` as in /generate.
        """
        clips = _answer(api.sweep, studio, request, {"weights": "1:1:1", **locals()}, fineness)
        return [_file(video) for video, _ in clips], [manifest for _, manifest in clips]

    for endpoint in (generate, compare, sweep):
        # Gradio reads the return type from the function itself, where it is text
        endpoint.__annotations__ = get_type_hints(endpoint, localns={"studio": studio})
        add_endpoint(endpoint, api_name=endpoint.__name__, **RUNS)


def _answer(work: Any, studio: Studio, request: gr.Request, given: Mapping[str, Any], *more: Any) -> Any:
    names = ("prompt", "weights", "strength", "steps", "cfg", "seed", "model")
    extra = given["settings"] if given["settings"] is not None else {}
    try:
        if not isinstance(extra, dict):
            raise ValueError(f"Expected `settings` as an object of names and values, but got {extra!r:.60}.")
        return work(studio, visit_name(request), {**extra, **{name: given[name] for name in names}}, *more)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _file(path: Path) -> FileData:
    return FileData(path=str(path), orig_name=path.name, mime_type="video/mp4")
