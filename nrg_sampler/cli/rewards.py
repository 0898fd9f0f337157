"""``nrg-sampler rewards``: the published rewards that can guide, and those that cannot and why."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nrg_sampler.cli.listing import add_arguments as add_arguments
from nrg_sampler.cli.listing import markdown_table, show

HELP = "List the published rewards that can guide, and those that cannot and why."
EXAMPLE = "rewards --json"


def run(arguments: argparse.Namespace) -> int:
    return show(arguments, listed, plain, markdown)


def listed() -> dict[str, list[dict[str, Any]]]:
    """Return the tables as plain JSON values: ``offered``, ``latent`` and ``not_offered``."""
    from nrg_sampler.rewards.named.latent_table import LATENT_TABLE
    from nrg_sampler.rewards.named.table import NOT_OFFERED, TABLE

    missing = [{"name": name, "reason": reason} for name, reason in NOT_OFFERED.items()]
    return {
        "offered": [asdict(entry) for entry in TABLE],
        "latent": [asdict(entry) for entry in LATENT_TABLE],
        "not_offered": missing,
    }


def plain() -> str:
    """Return the table for a terminal."""
    head = ("name", "axis", "prompt", "gradient", "pixels", "weights", "licence", "source")
    rows = [
        (
            row["name"], ", ".join(row["axes"]), _yes(row["reads_prompts"]), _yes(row["gradient"]),
            str(row["input_size"]), _millions(row["parameters"]), row["licence"], row["source"],
        )
        for row in listed()["offered"]
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (head, *rows)]
    latent = [
        f"{row['name']}: {', '.join(row['axes'])} of noisy latents, for {row['hosts']}; {row['licence']}; "
        f"{row['source']}, folder {row['folder']}"
        for row in listed()["latent"]
    ]
    missing = [f"{row['name']}: {row['reason']}" for row in listed()["not_offered"]]
    return "\n".join([*(line.rstrip() for line in lines), "", "On latents:", *latent, "", "Not offered:", *missing])


def markdown() -> str:
    """Return the tables of the documentation."""
    fits = {
        "crop": "short side, centre",
        "pad": "long side, black bars",
        "stretch": "both sides",
        "area": "area of the square, aspect kept",
    }
    rows = [
        (
            f"`{row['name']}`" + "".join(f", `{alias}`" for alias in row["aliases"]),
            ", ".join(row["axes"]),
            row["score"],
            _yes(row["reads_prompts"]),
            _yes(row["gradient"]),
            f"{row['input_size']}, {fits[row['fit']]}",
            _millions(row["parameters"]) + (f", {row['download'] / 1e9:.2f} GB" if row["download"] else ""),
            "none" if row["mean"] is None else " and ".join(map(_numbers, (row["mean"], row["std"]))),
            str(row["frames"]),
            row["licence"],
        )
        for row in listed()["offered"]
    ]
    sources = [
        (
            f"`{row['name']}`",
            f"`{row['source']}`" + ("" if row["on_hub"] else " on GitHub"),
            ", ".join((" or ".join(f"`{file}`" for file in row["files"]), *(f"`{file}`" for file in row["beside"]))),
            f"{row['base_part']} of `{row['base']}`"
            + ("; `{1}` of `{0}` on GitHub".format(*row["wording"]) if row["wording"] else ""),
            "loaded" if row["weights_at_hand"] else "were not at hand",
        )
        for row in listed()["offered"]
    ]
    latent = [
        (
            f"`{row['name']}`" + "".join(f", `{alias}`" for alias in row["aliases"]),
            row["hosts"],
            ", ".join(row["axes"]),
            row["score"],
            row["reads"],
            f"`{row['source']}`, folder `{row['folder']}`",
            "loaded" if row["weights_at_hand"] else "were not at hand",
            row["licence"],
        )
        for row in listed()["latent"]
    ]
    on_latents = ("name, on latents", "guides", "axis", "score", "reads", "source", "published weights", "licence")
    missing = [(f"`{row['name']}`", row["reason"]) for row in listed()["not_offered"]]
    about = ("name", "axis", "score", "reads the prompt", "gradient", "pixels", "weights")
    tables = (
        markdown_table((*about, "published mean and deviation", "frames", "licence"), rows),
        markdown_table(("name", "source", "file", "and", "published weights"), sources),
        markdown_table(on_latents, latent),
        markdown_table(("not offered", "because"), missing),
    )
    return "\n\n".join(tables)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values))


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.0f} M"
