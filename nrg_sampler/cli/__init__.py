"""The command line: a table of subcommands, and what they have in common.

A subcommand is a module with ``HELP``, ``EXAMPLE``, ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
To add one, write the module and name it in :data:`COMMANDS`. Modules import what is heavy inside ``run``.
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from typing import Protocol, TextIO

from nrg_sampler.cli import (
    app,
    bench,
    calibrate,
    compare,
    environment,
    evaluate,
    evaluate_reward,
    families,
    generate,
    rewards,
    score,
    train_reward,
)
from nrg_sampler.cli.parser import OneLineParser, ShortHelp, add_help_all
from nrg_sampler.entries import UNICODE, require
from nrg_sampler.files import NoRoomError
from nrg_sampler.runs.progress import RunFailedError


class Command(Protocol):
    """What the table below holds."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "compare": compare,
    "score": score,
    "evaluate": evaluate,
    "train-reward": train_reward,
    "evaluate-reward": evaluate_reward,
    "bench": bench,
    "app": app,
    "families": families,
    "rewards": rewards,
    "calibrate": calibrate,
    "env": environment,
}

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = OneLineParser(
        prog="nrg-sampler",
        description="Steer the sampling of a flow video model with a reward.",
        epilog='example: nrg-sampler compare "a red circle moving right"',
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        epilog = f"example: nrg-sampler {command.EXAMPLE}"
        own = commands.add_parser(
            name, help=command.HELP, description=command.HELP, epilog=epilog, formatter_class=ShortHelp
        )
        command.add_arguments(own)
        add_help_all(own)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        0, 1 when a replay differs, a training diverges, or the memory or the disk is full, 2 for bad input, 130
        after Ctrl-C.
    """
    arguments = build_parser().parse_args(argv)
    _print_any_text(sys.stdout)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _require_text(arguments)
            return COMMANDS[arguments.command].run(arguments)
    except (RunFailedError, NoRoomError) as error:
        if arguments.debug:
            raise
        _say("error", error)
        return FAILED
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        _say("error", error)
        return BAD_INPUT
    except (RuntimeError, MemoryError) as error:
        if arguments.debug or not _out_of_memory(error):
            raise
        advice = "try --checkpointing, fewer --frames, a smaller --height and --width, or --dtype bfloat16"
        _say("error", f"out of memory; {advice}.")
        return FAILED
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        _say("interrupted", "nothing was written.")
        return INTERRUPTED


def _require_text(arguments: argparse.Namespace) -> None:
    """Refuse texts in another encoding, before anything is sampled; a path may have any name.

    Raises:
        ValueError: With the option's name.
    """
    for name, value in vars(arguments).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                require({name: text}, {name: UNICODE})


def _print_any_text(stream: TextIO) -> None:
    """Let no name of a file and no sign that the terminal lacks end a run whose videos are made."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() in ("utf-8", "utf8") else "replace")


def _out_of_memory(error: Exception) -> bool:
    # of a GPU, of torch on the CPU, and of everything else there
    return isinstance(error, MemoryError) or any(text in str(error) for text in ("out of memory", "allocate memory"))


def _say(kind: str, text: object) -> None:
    line = " ".join(str(text).split())
    print(f"nrg-sampler: {kind}: {line}", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # Deprecations in other packages are nothing that a user of the command can act on.
    if issubclass(category, UserWarning):
        _say("warning", message)
