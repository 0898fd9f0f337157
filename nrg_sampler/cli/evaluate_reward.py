"""``nrg-sampler evaluate-reward``: how often a reward is right, at which noise, and how sure it is."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.cli.pairs import add_pairs, encoded, given_clip, load_pipeline, share
from nrg_sampler.cli.teacher import add_teacher, taught

if TYPE_CHECKING:
    from torch import Tensor

    from nrg_sampler.rewards.latent import LatentReward
    from nrg_sampler.training.decoding import ClipSettings
    from nrg_sampler.training.pairs import PairData
    from nrg_sampler.training.preferences import BadRow

HELP = "Measure the accuracy of latent rewards on labelled pairs, with and without ties, by axis and noise level."
EXAMPLE = "evaluate-reward videogen-rewardbench.csv --reward my-reward/reward --out accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pairs(parser)
    parser.add_argument(
        "--reward", nargs="+", required=True, metavar="DIR", help="several draw accuracy against training pairs"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for JSON, table and plots")
    parser.add_argument(
        "--held-out",
        type=share,
        metavar="F",
        help="only the pairs that train-reward --hold-out F left out of this file",
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and noise levels (default: 0)")
    add_teacher(parser)


def run(arguments: argparse.Namespace) -> int:
    from nrg_sampler.files import replacing, writable_folder
    from nrg_sampler.rewards.loading import load_reward
    from nrg_sampler.training.grade import markdown, plot_fractions
    from nrg_sampler.training.prepare import clip_settings

    writable_folder(arguments.out)
    device = _device(arguments)
    rewards = [load_reward(name).float().to(device) for name in arguments.reward]
    _check_axes(arguments.reward, rewards)
    pipe = load_pipeline(arguments, device)
    for reward in rewards:
        reward.check_compatible(pipe)
    trained_on = (rewards[0].config.about or {}).get("clips") or {}
    clips = clip_settings(arguments.model, {**trained_on, **given_clip(arguments)})
    data, bad_rows = _data(arguments, pipe, clips, rewards[0].axes, device)
    reports = []
    for place, (name, reward) in enumerate(zip(arguments.reward, rewards, strict=True)):
        plot = arguments.out / ("differences.png" if len(rewards) == 1 else f"differences-{place + 1}.png")
        reports.append({"reward": str(name), **_graded(reward, data, device, arguments.seed, plot)})
    if len(rewards) > 1 and all(report["training_pairs"] for report in reports):
        plot_fractions(reports, rewards[0].axes, arguments.out / "fractions.png")
    result = {
        "pairs": len(data),
        "bad_rows": [{"row": bad.row, "reason": bad.reason} for bad in bad_rows],
        "rewards": reports,
    }
    table = "\n\n".join(f"{report['reward']}\n\n{markdown(report)}" for report in reports)
    for file, text in (("accuracy.json", json.dumps(_without_nan(result), indent=2)), ("accuracy.md", table)):
        with replacing(arguments.out / file) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(_without_nan(result)) if arguments.json else table)
    return 0


def _device(arguments: argparse.Namespace) -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and not arguments.cpu else "cpu")


def _check_axes(names: list[str], rewards: list[LatentReward]) -> None:
    for name, reward in zip(names, rewards, strict=True):
        if reward.axes != rewards[0].axes:
            raise ValueError(
                f"Expected rewards with the same axes, but {names[0]} has {', '.join(rewards[0].axes)} and {name} has "
                f"{', '.join(reward.axes)}; evaluate them one at a time."
            )


def _data(
    arguments: argparse.Namespace, pipe: Any, clips: ClipSettings, axes: tuple[str, ...], device: Any
) -> tuple[PairData, list[BadRow]]:
    """Labelled pairs, or those that a teacher labels; all of them or the held-out ones, and what was left out."""
    from nrg_sampler.training.pairs import PairData, subset
    from nrg_sampler.training.preferences import split_pairs

    if arguments.teacher is not None:
        share = 1.0 if arguments.held_out is None else arguments.held_out
        found = taught(arguments, pipe, clips, share, device)
        if found.held_out is None:
            raise ValueError(f"Expected held-out clips, but --held-out {share:g} leaves none; leave the option out.")
        if found.held_out.axes != axes:
            raise ValueError(
                f"Expected a teacher of the rewards' axes ({', '.join(axes)}), but {arguments.teacher} scores "
                f"{', '.join(found.held_out.axes)}; name another."
            )
        return found.held_out, found.bad
    prepared = encoded(arguments, pipe, clips, axes)
    table = prepared.table
    if arguments.held_out is not None:
        table = subset(table, list(split_pairs(table.pairs, arguments.held_out, "held-out")))
        table.require()
    return PairData.of(table, prepared.cache), prepared.table.bad


def _graded(reward: LatentReward, data: PairData, device: Any, seed: int, plot: Path) -> dict[str, Any]:
    """Figures of one reward, and its plot."""
    import torch

    from nrg_sampler.training.grade import grade_differences, plot_differences, score_differences

    found = list(score_differences(reward, data, device, seed))
    differences, sigma = (torch.cat(column) for column in zip(*found, strict=True))
    about = reward.config.about or {}
    loss = (about.get("training") or {}).get("loss", "bradley-terry-ties")
    axes = grade_differences(differences, sigma, data, _calibration(len(data)), loss, reward.std)
    plot_differences(differences, data, plot)
    return {"training_pairs": about.get("training_pairs"), "axes": axes, "plot": str(plot)}


def _calibration(count: int) -> Tensor:
    """Half of the pairs, at random but always the same ones: the tie threshold is chosen on them."""
    import torch

    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]] = True
    return chosen


def _without_nan(value: Any) -> Any:
    """Write what could not be measured as null, which every JSON reader takes."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
