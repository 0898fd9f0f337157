"""What the commands that print a table share: ``families`` and ``rewards``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from nrg_sampler.json_text import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the forms that a table can be printed in."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    form.add_argument("--markdown", action="store_true", help="print the tables of the documentation")


def show(
    arguments: argparse.Namespace, listed: Callable[[], Any], plain: Callable[[], str], markdown: Callable[[], str]
) -> int:
    """Print a table in the form that was asked for; returns the exit code."""
    print(to_json(listed()) if arguments.json else markdown() if arguments.markdown else plain())
    return 0


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
