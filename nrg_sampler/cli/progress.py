"""A long run on the terminal: a progress bar for each part of it, and its notes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from nrg_sampler.runs.progress import Run

Result = TypeVar("Result")
SHOWN = ("loss", "accuracy")  # numbers that stand beside a bar


def show(run: Run[Result]) -> Result:
    """Do a run with a progress bar for each part of it, notes on stderr; returns its result."""
    from tqdm.auto import tqdm

    from nrg_sampler.runs.sampler import quiet_unless_watched

    quiet_unless_watched()
    bar: tqdm[Any] | None = None
    work = None
    for progress in run:
        if not run.is_main_process:
            continue
        if progress.work != work:
            if bar is not None:
                bar.close()
            work = progress.work
            bar = tqdm(desc=work, total=progress.total, unit=progress.unit, disable=not sys.stderr.isatty())
        assert bar is not None  # made with the first part
        bar.n = progress.done
        bar.set_postfix({name: f"{value:.4g}" for name, value in progress.numbers.items() if name in SHOWN})
        for note in progress.notes:
            bar.write(f"nrg-sampler: {note}", file=sys.stderr)
    if bar is not None:
        bar.close()
    return run.result
