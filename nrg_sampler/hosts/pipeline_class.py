"""Which class of diffusers a saved pipeline is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DiffusionPipeline


def pipeline_class(source: str, hub: Mapping[str, Any]) -> Any:
    """Return the class of diffusers of a saved pipeline.

    Args:
        source: A folder or Hub id.
        hub: Passed to the Hub, such as ``revision``.

    Raises:
        ValueError: If there is no pipeline, or its class is not of diffusers.
    """
    try:
        config = DiffusionPipeline.load_config(source, **hub)
    except OSError as error:
        raise ValueError(
            f"Expected a diffusers pipeline in {source!r}, but found none ({str(error).splitlines()[0]}); "
            "pass 'shapes', a folder with a model_index.json or a Hub id."
        ) from error
    name = config.get("_class_name")
    base = getattr(diffusers, name, None) if isinstance(name, str) else None
    if base is None:
        raise ValueError(
            f"Expected a pipeline class of diffusers in {source!r}, but got {name!r}; "
            "load the pipeline yourself and pass it to `NRGFlowPipeline.from_pipe`."
        )
    return base
