"""JSON that every reader takes, and nothing that writes it otherwise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nrg_sampler.json_text import to_json

PACKAGE = Path(__file__).parents[1] / "nrg_sampler"


def test_numbers_that_are_not_finite_become_null():
    value = {"loss": math.inf, "rows": [{"accuracy": math.nan}, (1.5, -math.inf)], 3: True}
    assert to_json(value) == '{"loss": null, "rows": [{"accuracy": null}, [1.5, null]], "3": true}'
    assert to_json({"b": 1, "a": [0.1]}, sort_keys=True) == json.dumps({"b": 1, "a": [0.1]}, sort_keys=True)


WRITERS = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "json_text.py")


@pytest.mark.parametrize("module", WRITERS)
def test_no_module_writes_json_that_some_readers_refuse(module):
    text = (PACKAGE / module).read_text(encoding="utf-8")
    assert "json.dump" not in text, "write JSON with `to_json`, which knows no NaN"
