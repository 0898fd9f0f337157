"""Train the bundled models from scratch, one stage after the other; each resumes where it stopped.

Example:
  for stage in vae base first-reward clean-reward second-reward third-reward robust-reward reward gate judge bundle
  do python -m nrg_sampler.shapes.train $stage --out shapes-training; done
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from nrg_sampler.checkpoints import pipeline_source
from nrg_sampler.files import NoRoomError, writable_folder
from nrg_sampler.locks import FolderLock
from nrg_sampler.runs.progress import RunFailedError


def _vae(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.train_vae import train_vae

    return train_vae(folder, **options)


def _base(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.train_base import train_base
    from nrg_sampler.shapes.train.train_text import train_text

    start: Path | None = options.get("start")
    if start is not None:
        for part in ("tokenizer", "text_encoder"):  # the earlier transformer reads these embeddings of words
            if not (folder / part).is_dir():
                shutil.copytree(start / part, folder / part)
    if not (folder / "text_encoder").is_dir():
        yield from train_text(folder, seed=options["seed"], device=options["device"])
    yield from train_base(folder, **options)


def _reward(name: str) -> Callable[..., Iterator[dict[str, float]]]:
    def train(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
        from nrg_sampler.shapes.train.train_reward import train_reward

        return train_reward(folder, name, **options)

    return train


def _gate(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.train_gate import fit_gate

    return fit_gate(folder, **options)


def _judge(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.train_judge import train_judge

    return train_judge(folder, **options)


def _ablation(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.ablation import run_ablation

    return run_ablation(folder, **options)


SHOWN = 50  # every so many steps' numbers stand beside the bar
REWARDS = (
    "first-reward",
    "clean-reward",
    "noised-reward",
    "second-reward",
    "third-reward",
    "robust-reward",
    "reward",
)
STAGES = {
    "vae": _vae,
    "base": _base,
    **{name: _reward(name) for name in REWARDS},
    "gate": _gate,
    "judge": _judge,
    "ablation": _ablation,
}


def _arithmetic(device: str) -> str:
    from nrg_sampler.runs.device import fast_dtype

    return str(fast_dtype(device)).removeprefix("torch.")


def main() -> None:
    """Run one stage with a progress bar; its numbers are logged beside its checkpoint."""
    parser = argparse.ArgumentParser(
        prog="python -m nrg_sampler.shapes.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stage", choices=(*STAGES, "bundle"), help="`bundle` puts the parts together in half precision"
    )
    parser.add_argument("--out", type=Path, default=Path("shapes-training"), help="folder for checkpoints and models")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the bundled model's)")
    parser.add_argument("--batch", type=int, help="clips a step (default: the bundled model's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--start", metavar="MODEL", help="`vae` and `base` only: go on from this pipeline's weights")
    parser.add_argument("--factors", nargs="+", metavar="NAME", help="`ablation` only: what to vary, one at a time")
    parser.add_argument("--seeds", type=int, help="`ablation` only: runs of each choice (default: 3)")
    arguments = parser.parse_args()
    given = ("steps", "batch", *(("factors", "seeds") if arguments.stage == "ablation" else ()))
    options = {name: getattr(arguments, name) for name in given if getattr(arguments, name) is not None}
    if arguments.start is not None:
        if arguments.stage not in ("vae", "base"):
            parser.error(
                f"Expected `--start` with the stages `vae` and `base` only, but got it with {arguments.stage}."
            )
        options["start"] = Path(pipeline_source(arguments.start))
    try:
        with FolderLock(writable_folder(arguments.out)):
            if arguments.stage == "bundle":
                _bundle(arguments.out)
                return
            about = f"{_arithmetic(arguments.device)} arithmetic on {arguments.device}"
            print(f"{arguments.stage}: {about}", file=sys.stderr)
            _show(STAGES[arguments.stage](arguments.out, seed=arguments.seed, device=arguments.device, **options))
    except (RunFailedError, NoRoomError) as error:
        raise SystemExit(f"{arguments.stage}: error: {error}") from error
    except (ValueError, OSError) as error:
        print(f"{arguments.stage}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _bundle(folder: Path) -> None:
    from nrg_sampler.shapes.train.assemble import save_bundle

    save_bundle(folder, folder / "bundle")
    print(f"wrote {folder / 'bundle'}")


def _show(run: Iterator[dict[str, float]]) -> None:
    with tqdm(unit="step") as bar:
        for numbers in run:
            bar.update(int(numbers["step"] > 0))
            if numbers["step"] % SHOWN == 0:
                bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})


if __name__ == "__main__":
    main()
