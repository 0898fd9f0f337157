"""JSON as every reader takes it, numbers that are not finite as null; and files of it that may be damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """Write strict JSON.

    Args:
        value: Mappings, lists, tuples, texts and numbers; NaN and infinities become ``null``.
        **options: Of ``json.dumps``, such as ``indent``.
    """
    return json.dumps(finite_only(value), allow_nan=False, **options)


def finite_only(value: Any) -> Any:
    """Return a value with ``None`` in place of every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite_only(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_object(file: Path, advice: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Read a file that holds a JSON object, which somebody may have edited or cut off.

    Args:
        file: The file.
        advice: What to do about a damaged one, the end of a sentence without its full stop.
        needed: Entries that must be there.

    Raises:
        ValueError: If it is none, in a sentence that names the file.
        FileNotFoundError: If there is no such file.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Expected a JSON object in {file}, but it does not parse; {advice}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"Expected a JSON object in {file}, but it holds another kind of JSON; {advice}.")
    if missing := [name for name in needed if name not in value]:
        raise ValueError(f"Expected the entries of {file}, but it lacks {', '.join(missing)}; {advice}.")
    return value
