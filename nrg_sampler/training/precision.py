"""The precision of a run: chosen by what is fast on the device, and kept for as long as the run is continued."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from nrg_sampler.files import replacing
from nrg_sampler.json_text import to_json
from nrg_sampler.runs.device import AUTO, dtype_name, dtype_reason
from nrg_sampler.training.checkpoint import newest_checkpoint
from nrg_sampler.training.settings import DTYPES, MIXED_PRECISIONS, RewardTraining

LAUNCHER = "ACCELERATE_MIXED_PRECISION"  # set by accelerate launch in the processes that it starts
CHECKPOINTS, PRECISION = "checkpoints", "precision.json"  # in the output folder


@dataclass(frozen=True)
class Precision:
    """In which precision a run computes.

    Args:
        dtype: Of the pipeline's weights while clips are encoded and sampled.
        mixed_precision: ``"bf16"`` trains under bfloat16 autocast, ``"no"`` in float32.
        note: Says what was chosen, for the user; ``None`` if the settings left no choice.
    """

    dtype: str
    mixed_precision: str
    note: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The note, if there is one, as ``Progress`` takes it."""
        return () if self.note is None else (self.note,)

    def save(self, folder: Path) -> None:
        """Write the choice to the output folder, where a continued run reads it."""
        with replacing(folder / PRECISION) as partial:
            partial.write_text(to_json({"dtype": self.dtype, "mixed_precision": self.mixed_precision}) + "\n")


def choose_precision(settings: RewardTraining, device: str) -> Precision:
    """Choose the precision of a training.

    Args:
        settings: What is not ``"auto"`` is as set. What is comes from ``accelerate launch``, which sets the mixed
            precision of the processes that it starts; else from the run that is continued, if there are checkpoints;
            else from what is fast on the device.
        device: Where the run computes.

    Raises:
        ValueError: If ``accelerate launch`` sets a precision in which rewards are not trained, or the record of a run
            that is continued is damaged.
    """
    kept = _kept(settings.out)
    launched = _launched() if settings.mixed_precision == AUTO else {}
    name = dtype_name(AUTO, device)
    fast = {"dtype": name, "mixed_precision": "bf16" if name == "bfloat16" else "no"}
    wanted = {"dtype": settings.encoding.dtype, "mixed_precision": settings.mixed_precision}
    chosen = {
        field: {**fast, **kept, **launched}[field] if value == AUTO else value for field, value in wanted.items()
    }
    if AUTO not in wanted.values():
        return Precision(**chosen)
    reason = "as before in this run" if kept else dtype_reason(device).removesuffix(".")
    if launched:
        own = "training as accelerate launch has it, which --mixed-precision overrides"
        reason = own if settings.encoding.dtype != AUTO else f"{reason}; {own}"
    training = "bfloat16 autocast" if chosen["mixed_precision"] == "bf16" else "float32"
    return Precision(**chosen, note=f"clips are encoded in {chosen['dtype']}, training is in {training}: {reason}.")


def _launched() -> dict[str, str]:
    """Read the precision that ``accelerate launch`` was given; empty if it did not start this process.

    Raises:
        ValueError: If it is one in which rewards are not trained.
    """
    value = os.environ.get(LAUNCHER)
    if value is None:
        return {}
    if value not in MIXED_PRECISIONS or value == AUTO:
        raise ValueError(
            f"Expected `accelerate launch --mixed_precision` to be bf16 or no, but got {value}; launch with one of "
            "these, or override it with --mixed-precision."
        )
    return {"mixed_precision": value}


def _kept(folder: Path) -> dict[str, str]:
    """Read the precision of the run whose checkpoints are in an output folder; empty if there is none."""
    if newest_checkpoint(folder / CHECKPOINTS) is None:
        return {}
    file = folder / PRECISION
    if not file.is_file():  # before runs chose a precision, these were the defaults
        return {"dtype": "float32", "mixed_precision": "no"}
    try:
        kept = json.loads(file.read_text(encoding="utf-8-sig"))
        chosen = {"dtype": str(kept["dtype"]), "mixed_precision": str(kept["mixed_precision"])}
    except (ValueError, KeyError, TypeError):
        chosen = {}
    if chosen.get("dtype") not in DTYPES or chosen.get("mixed_precision") not in MIXED_PRECISIONS:
        raise ValueError(
            f"Expected the dtype and mixed_precision of the run in {file}, but it is damaged; write them as "
            '{"dtype": "float32", "mixed_precision": "no"}, or name another folder as `out`.'
        )
    return chosen
