"""Texts that people write: some editors begin them with a byte order mark, which is no part of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nrg_sampler"
READERS = sorted(
    str(path.relative_to(PACKAGE))
    for path in PACKAGE.rglob("*.py")
    if ".read_text(" in path.read_text(encoding="utf-8") and path.parent.name != "ui"  # the page reads its own files
)


@pytest.mark.parametrize("module", READERS)
def test_every_text_is_read_without_its_byte_order_mark(module):
    text = (PACKAGE / module).read_text(encoding="utf-8")
    assert re.findall(r"\.read_text\((?!\s*encoding=\"utf-8-sig\")", text) == []
