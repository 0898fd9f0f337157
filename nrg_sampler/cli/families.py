"""``nrg-sampler families``: the pipelines that can be guided, and those that cannot and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from nrg_sampler.cli.listing import add_arguments as add_arguments
from nrg_sampler.cli.listing import markdown_table, show

HELP = "List the diffusers pipelines that can be guided, and those that cannot and why."
EXAMPLE = "families --json"


def run(arguments: argparse.Namespace) -> int:
    return show(arguments, listed, plain, markdown)


def listed() -> dict[str, list[dict[str, Any]]]:
    """Return the table as plain JSON values: ``supported`` and ``refused``."""
    from nrg_sampler.hosts.families import FAMILIES, REFUSED

    supported = [
        {
            "name": family.name,
            "pipelines": list(family.pipelines),
            "latents": family.layout.shape if family.layout else None,
            "classifier_free_guidance": family.cfg,
        }
        for family in FAMILIES
    ]
    return {"supported": supported, "refused": [{"name": name, "reason": why} for name, why in REFUSED.items()]}


def plain() -> str:
    """Return the table for a terminal."""
    table = listed()
    width = max(len(name) for row in table["supported"] for name in row["pipelines"])
    lines = [f"{name:<{width}}  {row['name']}" for row in table["supported"] for name in row["pipelines"]]
    refused = [f"{row['name']}: {row['reason']}" for row in table["refused"]]
    return "\n".join([*lines, "", "Refused:", *refused])


def markdown() -> str:
    """Return the tables of the documentation."""
    table = listed()
    supported = [
        (row["name"], _code(row["pipelines"]), f"`{row['latents']}`", row["classifier_free_guidance"])
        for row in table["supported"]
    ]
    reasons = dict.fromkeys(row["reason"] for row in table["refused"])
    refused = [(_code([row["name"] for row in table["refused"] if row["reason"] == why]), why) for why in reasons]
    head = ("family", "pipelines", "latents at the scheduler", "classifier-free guidance")
    return f"{markdown_table(head, supported)}\n\n{markdown_table(('refused', 'because'), refused)}"


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
