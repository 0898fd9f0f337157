"""Find, load and diagnose the folders that models come in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nrg_sampler import entries as kinds
from nrg_sampler.json_text import read_object

BUNDLED = "shapes"
SAMPLING_FILE = "sampling.json"
SAMPLING_ENTRIES = {  # arguments of the pipeline call
    "num_inference_steps": kinds.COUNT,
    "guidance_scale": kinds.NUMBER,
    "negative_prompt": kinds.TEXT.or_none(),
    "height": kinds.COUNT,
    "width": kinds.COUNT,
    "num_frames": kinds.COUNT,
    "max_sequence_length": kinds.COUNT,
}
FILE_ENTRIES = {**SAMPLING_ENTRIES, "fps": kinds.POSITIVE, "closed_vocabulary": kinds.SWITCH, "reward": kinds.TEXT}
_WEIGHTS = Path(__file__).parent / "shapes" / "weights"


def bundled_folder(part: str) -> Path:
    """Return the folder of a part of the bundled model, ``"pipeline"`` or ``"reward"``.

    Raises:
        ValueError: If it is not installed.
    """
    folder = _WEIGHTS / part
    if not folder.is_dir():
        raise ValueError(
            f"Expected the bundled model in {folder}, but it is not there; install nrg-sampler again, "
            "or train it with `python -m nrg_sampler.shapes.train`."
        )
    return folder


def pipeline_source(name: str | os.PathLike[str]) -> str:
    """Return the folder or Hub id that ``name`` stands for; ``"shapes"`` is the bundled model."""
    return str(bundled_folder("pipeline") if name == BUNDLED else name)


def read_sampling(source: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Read ``sampling.json``, the call arguments a model was trained for; empty if there is none.

    Args:
        source: A folder or a Hub id.
        **hub: Passed to ``huggingface_hub.hf_hub_download``, such as ``revision``.

    Raises:
        ValueError: If the file is not a JSON object, or one of its entries is of another kind.
    """
    path = _sampling_file(source, hub)
    if path is None:
        return {}
    settings = read_object(path, "repair or delete the file")
    kinds.require(settings, {**dict.fromkeys(settings, kinds.PLAIN), **FILE_ENTRIES}, f" in {path}")
    return settings


def _sampling_file(source: str | os.PathLike[str], hub: dict[str, Any]) -> Path | None:
    if os.path.isdir(source):
        path = Path(source) / SAMPLING_FILE
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(str(source), SAMPLING_FILE, **hub))
    except EntryNotFoundError:  # also when offline and not in the cache
        return None


@contextmanager
def readable(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Replace whatever a loader says about a damaged file in ``folder`` by one sentence that names it.

    Raises:
        ValueError: If the block fails and a JSON or safetensors file in ``folder`` cannot be read.
    """
    try:
        yield
    except Exception as error:
        for path in sorted(Path(folder).rglob("*")) if os.path.isdir(folder) else []:
            damage = _damage(path)
            if damage:
                raise ValueError(
                    f"Expected a complete file in {path}, but it cannot be read ({damage}); download or copy it again."
                ) from error
        raise


def _damage(path: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return None
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8-sig"))
    except (SafetensorError, ValueError, OSError) as error:
        return first_line(error)
    return None


def require_weights(parts: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Refuse a pipeline in which a network has weights that its files lack: diffusers leaves them without values.

    Args:
        parts: The pipeline's components by name, loaded without offloading.
        source: The folder or Hub id that they come from.

    Raises:
        ValueError: With the first of them.
    """
    from torch import nn

    for name, part in parts.items():
        weights = part.named_parameters() if isinstance(part, nn.Module) else ()
        if lacking := [key for key, weight in weights if weight.is_meta]:
            raise ValueError(
                f"Expected the weights that config.json describes in {os.path.join(source, name)!r}, but they lack "
                f"{first_few(lacking)}; restore the config.json that was saved with them, or copy the folder again."
            )


def first_few(names: Sequence[str]) -> str:
    """Name the first three, and say how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, without a full stop; its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
