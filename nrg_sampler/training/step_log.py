"""The numbers of a training as JSON lines, each step once, also after a run that was killed and goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nrg_sampler.files import replacing, writing
from nrg_sampler.json_text import to_json


class StepLog:
    """Append steps to a file that may hold those of an earlier start of the same run.

    What that start logged at the first step that is written now, or later, is done again and dropped.

    Args:
        file: One JSON object a line; its folder must exist when the first is written.
    """

    def __init__(self, file: Path) -> None:
        """Write nothing yet."""
        self._file, self._begun = file, False

    def write(self, numbers: Mapping[str, float]) -> None:
        """Append the numbers of a step, ``step`` among them.

        Raises:
            NoRoomError: If the disk is full.
        """
        with writing(self._file):
            if not self._begun and self._file.exists():
                lines = self._file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
                kept = [line for line in lines if _is_before(line, numbers["step"])]
                with replacing(self._file) as partial:
                    partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            self._begun = True
            with open(self._file, "a", encoding="utf-8") as log:
                log.write(to_json(numbers) + "\n")


def _is_before(line: str, step: float) -> bool:
    try:
        return bool(json.loads(line)["step"] < step)
    except (ValueError, KeyError, TypeError):  # half a line
        return False
