"""Train the bundled models from nothing, one stage after the other; each resumes where it stopped.

Example: for stage in vae base first-reward reward gate judge bundle; do python -m nrg_sampler.shapes.train $stage --out shapes-training; done
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm


def _vae(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.vae import train_vae

    return train_vae(folder, **options)


def _base(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.base import train_base
    from nrg_sampler.shapes.train.text import train_text

    if not (folder / "text_encoder").is_dir():
        yield from train_text(folder, seed=options["seed"], device=options["device"])
    yield from train_base(folder, **options)


def _first_reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_first_reward

    return train_first_reward(folder, **options)


def _reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_reward

    return train_reward(folder, **options)


def _second_reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_second_reward

    return train_second_reward(folder, **options)


def _third_reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_third_reward

    return train_third_reward(folder, **options)


def _clean_reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_compared_reward

    return train_compared_reward(folder, "clean-reward", **options)


def _noised_reward(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.reward import train_compared_reward

    return train_compared_reward(folder, "noised-reward", **options)


def _gate(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.gate import fit_gate

    return fit_gate(folder, **options)


def _judge(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.judge import train_judge

    return train_judge(folder, **options)


def _ablation(folder: Path, **options: Any) -> Iterator[dict[str, float]]:
    from nrg_sampler.shapes.train.ablation import run_ablation

    return run_ablation(folder, **options)


STAGES = {
    "vae": _vae,
    "base": _base,
    "first-reward": _first_reward,
    "clean-reward": _clean_reward,
    "noised-reward": _noised_reward,
    "second-reward": _second_reward,
    "third-reward": _third_reward,
    "reward": _reward,
    "gate": _gate,
    "judge": _judge,
    "ablation": _ablation,
}


def main() -> None:
    """Run one stage with a progress bar and a log of numbers beside the checkpoint."""
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
    parser.add_argument("--factors", nargs="+", metavar="NAME", help="`ablation` only: what to vary, one at a time")
    parser.add_argument("--seeds", type=int, help="`ablation` only: runs of each choice (default: 3)")
    arguments = parser.parse_args()
    if arguments.stage == "bundle":
        from nrg_sampler.shapes.train.assemble import save_bundle

        save_bundle(arguments.out, arguments.out / "bundle")
        print(f"wrote {arguments.out / 'bundle'}")
        return

    given = ("steps", "batch", *(("factors", "seeds") if arguments.stage == "ablation" else ()))
    options = {name: getattr(arguments, name) for name in given if getattr(arguments, name) is not None}
    run = STAGES[arguments.stage](arguments.out, seed=arguments.seed, device=arguments.device, **options)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tqdm(unit="step") as bar, open(arguments.out / f"{arguments.stage}.jsonl", "a") as log:
        for numbers in run:
            bar.update(int(numbers["step"] > 0))
            if numbers["step"] % 50 == 0:
                bar.set_postfix({name: f"{value:.4g}" for name, value in numbers.items()})
                log.write(json.dumps(numbers) + "\n")
                log.flush()


if __name__ == "__main__":
    main()
