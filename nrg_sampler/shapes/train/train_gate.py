"""Train the bundled reward's gate on the deficits of unguided samples, and measure it on held-out prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.gate import WeightGate, pool_prompts
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import caption
from nrg_sampler.shapes.train.groups import scores, to_prompt
from nrg_sampler.shapes.train.pool import Pool
from nrg_sampler.shapes.train.train_text import encode_text
from nrg_sampler.statistics import spearman
from nrg_sampler.training.gate import deficits, train_gate

if TYPE_CHECKING:
    from diffusers import WanPipeline

CAPTIONS = 4  # phrasings of each prompt


def fit_gate(folder: Path, seed: int = 0, device: str = "cpu", **options: Any) -> Iterator[dict[str, float]]:
    """Add a gate to ``folder/reward`` and write ``folder/gate-accuracy.json``; needs the reward and its pools.

    Yields:
        Once, the rank correlation of predicted and actual deficits over held-out prompts, by axis.
    """
    from nrg_sampler.shapes.train.assemble import assemble_pipeline

    pipe = assemble_pipeline(folder).to(device)
    pool = Pool.load(*sorted(set(folder.glob("pool-sampled*.safetensors")) - set(_held_out(folder))))
    pooled, targets = _prompt_deficits(pool, pipe, seed)
    gate = train_gate(pooled, targets, seed=seed, **options)
    accuracy = gate_accuracy(gate, Pool.load(*_held_out(folder)), pipe, seed)
    (folder / "gate-accuracy.json").write_text(to_json(accuracy, indent=2))
    reward = LatentReward.from_pretrained(folder / "reward", dtype=torch.float32)
    reward.add_gate(gate)
    reward.save_pretrained(folder / "reward")
    yield {"step": 1, **{axis: accuracy[axis]["rank_correlation"] for axis in AXES}}


def _held_out(folder: Path) -> list[Path]:
    return sorted(folder.glob("pool-sampled*validation.safetensors"))


@torch.no_grad()
def _prompt_deficits(pool: Pool, pipe: WanPipeline, seed: int) -> tuple[Tensor, Tensor]:
    """Return pooled prompts ``(n, text_dim)``, each in several phrasings, and their deficits ``(n, 3)``."""
    rng = random.Random(seed)
    targets, names = deficits(scores(pool, torch.arange(len(pool.group)), pool.labels), pool.group)
    first = [int((pool.group == name).nonzero()[0]) for name in names]
    texts = [caption(to_prompt(pool.labels[row].tolist()), rng) for row in first for _ in range(CAPTIONS)]
    parts = [encode_text(pipe.tokenizer, pipe.text_encoder, texts[at : at + 64]) for at in range(0, len(texts), 64)]
    pooled = torch.cat([pool_prompts(embeds.float(), mask) for embeds, mask in parts]).cpu()
    return pooled, targets.repeat_interleave(CAPTIONS, dim=0)


def gate_accuracy(gate: WeightGate, pool: Pool, pipe: WanPipeline, seed: int = 0) -> dict[str, dict[str, float]]:
    """Measure the rank correlation of predicted and actual deficits over the prompts of a pool, by axis.

    ``ceiling`` bounds what is attainable with so few samples: the rank correlation between the two halves of the
    samples of each prompt, stepped up to all of them by Spearman and Brown's formula.
    """
    pooled, actual = _prompt_deficits(pool, pipe, seed)
    predicted = gate(pooled).unflatten(0, (-1, CAPTIONS)).mean(dim=1)  # (prompts, 3)
    actual = actual[::CAPTIONS]
    place = torch.cat([torch.arange(int(count)) for count in pool.group.unique_consecutive(return_counts=True)[1]])
    value = scores(pool, torch.arange(len(pool.group)), pool.labels)
    halves = [deficits(value[place % 2 == side], pool.group[place % 2 == side])[0] for side in (0, 1)]
    agreement = spearman(halves[0].T, halves[1].T).clamp(min=0)
    return {
        axis: {
            "rank_correlation": spearman(predicted[:, index], actual[:, index]).item(),
            "ceiling": (2 * agreement[index] / (1 + agreement[index])).sqrt().item(),
            "mean_deficit": actual[:, index].mean().item(),
            "prompts": len(actual),
        }
        for index, axis in enumerate(AXES)
    }
