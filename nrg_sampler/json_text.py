"""JSON as every reader takes it: numbers that are not finite become null, for the standard knows none."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
