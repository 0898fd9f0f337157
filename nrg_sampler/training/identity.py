"""What a run trains on what: only a run that would have done the same goes on from its checkpoints."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nrg_sampler.training.checkpoint import CheckpointWarning
from nrg_sampler.training.objective import Objective
from nrg_sampler.training.pairs import PairData

DIGESTS = ("pairs", "labels", "model")  # named in a message, but not shown
FREE = ("save_every",)  # changes nothing of what is trained
TEXT_AXES, PRECISION = "axes that see the prompt", "mixed precision"


def run_identity(
    objective: Objective, settings: Mapping[str, Any], data: PairData, text_axes: tuple[str, ...], bfloat16: bool
) -> dict[str, str]:
    """Return everything that decides the weights, by name: settings, and digests of pairs, labels, clips and model.

    Args:
        objective: What the reward learns.
        settings: Of the trainer, by name.
        data: The pairs, whose cache knows the model and how files became clips.
        text_axes: Axes that see the prompt.
        bfloat16: Whether the forward pass is computed under bfloat16 autocast.
    """
    chosen = {name: value for name, value in {**objective.identity(), **settings}.items() if name not in FREE}
    named: dict[str, Any] = {
        **chosen,
        **data.encoding,
        "axes": ", ".join(data.axes),
        TEXT_AXES: ", ".join(text_axes) or "none",
        PRECISION: "bf16" if bfloat16 else "no",
        "number of pairs": len(data),
        "pairs": _digest(*(f"{first} {second} {prompt}" for first, second, prompt in data.names)),
        "labels": _digest(data.preference, *(() if data.measured is None else (data.measured,))),
    }
    return {name: str(value) for name, value in named.items()}


def first_identity(objective: Objective, settings: Mapping[str, Any], data: PairData) -> str:
    """Return the identity as 0.1.0 wrote it, which says nothing of labels, clips and model."""
    fixed = {name: value for name, value in settings.items() if name not in FREE}
    return repr((objective.identity(), fixed, data.axes, len(data)))


def require_same_run(stored: Mapping[str, str] | str, identity: Mapping[str, str], first: str, folder: Path) -> None:
    """Refuse checkpoints of a run that trained something else.

    Args:
        stored: The identity in the checkpoint: by name, or the text of 0.1.0.
        identity: Of this run, from :func:`run_identity`.
        first: Of this run, from :func:`first_identity`.
        folder: Of the checkpoints.

    Raises:
        ValueError: With what differs.

    Warns:
        CheckpointWarning: If the checkpoint is of 0.1.0 and differs in nothing that it names.
    """
    if isinstance(stored, str):
        if stored != first:
            raise ValueError(
                f"Expected checkpoints of this objective and these pairs in {folder}, but they are of {stored}; "
                "repeat those settings, or name another folder as `out`."
            )
        warnings.warn(
            f"The checkpoints in {folder} are of version 0.1.0, which did not write down labels, clips and model; "
            "training goes on from them as they are. If any of these changed, name another folder as `out`.",
            CheckpointWarning,
            stacklevel=2,
        )
        return
    names = [name for name in {**stored, **identity} if stored.get(name) != identity.get(name)]
    if names:
        differing = ", ".join(_difference(name, stored.get(name), identity.get(name)) for name in names)
        raise ValueError(
            f"Expected a run that trains the same as the checkpoints in {folder}, but these differ: {differing}; "
            "repeat what they were, or name another folder as `out`."
        )


def _difference(name: str, before: str | None, now: str | None) -> str:
    return f"the {name}" if name in DIGESTS else f"{name} {before or 'not set'} (now {now or 'not set'})"


def _digest(*parts: str | Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else _bytes(part))
        digest.update(b"\0")
    return digest.hexdigest()


def _bytes(values: Tensor) -> bytes:
    """The values, where every NaN is the same."""
    plain = values.detach().to("cpu").double()
    return plain.where(~plain.isnan(), float("nan")).numpy().tobytes()
