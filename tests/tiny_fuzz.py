"""What a fuzz test feeds: JSON values of every kind, texts as users mistype them, and edits of a JSON document."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

HARD_NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(HARD_NUMBERS)
    | st.sampled_from(["auto", "none", "x", "1:1", "VQ=1", "\ud800"])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
# Numbers, separators and names in any order, and any text at all.
pieces = st.sampled_from(
    [
        "1",
        "0",
        "-1",
        "0.5",
        "1e999",
        "nan",
        "inf",
        "VQ",
        "TA",
        "=",
        ":",
        ",",
        " ",
        "auto",
        "none",
        "None",
        "_",
        "٣",
        "\0",
    ]
)
almost_weights = st.lists(pieces, max_size=9).map("".join) | st.text(max_size=12)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value of a JSON document but the whole."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


@st.composite
def edited(draw: Any, document: Any) -> Any:
    """Draw a copy of a JSON document with one to three values replaced, removed or added."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = places(changed)
        if not found:
            return changed
        *path, last = draw(st.sampled_from(found))
        parent = changed
        for key in path:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[last] = draw(json_values)
            case "remove":
                del parent[last]
            case "add" if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(json_values)
    return changed
