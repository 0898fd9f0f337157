"""Groups of clips that are compared under one prompt, for the training of the reward and of the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from nrg_sampler.shapes.oracle import ATTRIBUTE_WEIGHTS
from nrg_sampler.shapes.scenes import Prompt, split_of
from nrg_sampler.shapes.train.pool import GROUP, Pool
from nrg_sampler.shapes.train.train_text import CHOICES

ANNOTATOR_NOISE = 0.25  # standard deviation of an annotator's error, in standard deviations of a score over the pool
TIE = 0.25  # smaller perceived differences are called a tie, same unit
COMBINATION = 3  # the first three attributes, (shape, colour, motion), are what the splits hold out
MIXTURE = {"same": 0.35, "alike": 0.25, "near": 0.2, "mixed": 0.2}  # shares of the kinds of groups in training
EDITED = 0.5  # share of the groups that are compared under a changed prompt
LEFT, RIGHT = zip(*combinations(range(GROUP), 2), strict=True)


def to_prompt(row: list[int]) -> Prompt:
    """Turn a row of attribute indices back into a prompt."""
    values = {name: (*CHOICES[name], None)[index] for name, index in zip(CHOICES, row, strict=True)}
    return Prompt(**values)  # type: ignore[arg-type]


def scores(pool: Pool, rows: Tensor, labels: Tensor) -> Tensor:
    """Return the oracle's VQ, MQ and TA of clips under prompts that need not be their own, ``(..., 3)``.

    Args:
        pool: The clips.
        rows: Which of them, any shape.
        labels: Attribute indices of the prompts, shape ``(*rows.shape, 5)``.
    """
    total = weight = torch.zeros(rows.shape)
    start = 0
    for index, name in enumerate(CHOICES):
        size = len(CHOICES[name])
        value = labels[..., index]
        table = pool.tables[rows, start : start + size]
        fit_of_value = table.gather(-1, value.clamp(max=size - 1)[..., None])[..., 0]
        share = ATTRIBUTE_WEIGHTS[name] * (value < size)
        total, weight = total + share * fit_of_value, weight + share
        start += size
    alignment = pool.quality[rows, 2] * total / weight
    return torch.stack([pool.quality[rows, 0], pool.quality[rows, 1], alignment], dim=-1)


class PairSampler:
    """Draws groups of clips to compare under one prompt.

    - ``"same"``: samples of that prompt, which is what guidance has to choose between;
    - ``"alike"``: clips made for its shape, colour and motion, with faults or without;
    - ``"near"``: clips made for it, and clips that differ from it in one of shape, colour and motion alone;
    - ``"mixed"``: two clips made for it if there are two, and any others.

    Args:
        pool: The clips.
    """

    def __init__(self, pool: Pool) -> None:
        """Index the clips by prompt and by combination."""
        self.pool = pool
        self.members: dict[int, list[int]] = {}
        self.alike: dict[tuple[int, ...], list[int]] = {}
        for row, (group, labels) in enumerate(zip(pool.group.tolist(), pool.labels.tolist(), strict=True)):
            self.members.setdefault(group, []).append(row)
            self.alike.setdefault(tuple(labels[:COMBINATION]), []).append(row)
        tables = pool.tables.split([len(CHOICES[name]) for name in CHOICES], dim=1)
        self.shown = torch.stack([table.argmax(dim=1) for table in tables], dim=1)  # (N, 5)
        self.sampled = [rows for rows in self.members.values() if len(rows) >= GROUP]
        own = scores(pool, torch.arange(len(pool.group)), pool.labels)
        self.origin, self.spread = own.mean(dim=0), own.std(dim=0)  # (3,) each

    def draw(self, kind: str, rng: random.Random) -> list[int]:
        """Draw the rows of one group of a kind; the prompt is the first one's."""
        if kind == "same":
            return rng.sample(rng.choice(self.sampled), GROUP)
        first = rng.randrange(len(self.pool.group))
        combination = tuple(self.pool.labels[first, :COMBINATION].tolist())
        if kind == "alike":
            return [first, *rng.choices(self.alike[combination], k=GROUP - 1)]
        if kind == "near":
            differing = [
                [self.alike[other] for other in others if other in self.alike] for others in neighbours(combination)
            ]
            near = rng.choice([clips for clips in differing if clips])
            return [first, rng.choice(self.alike[combination]), *(rng.choice(rng.choice(near)) for _ in range(2))]
        same = [row for row in self.members[int(self.pool.group[first])] if row != first]
        kept = rng.sample(same, min(1, len(same)))
        return [first, *kept, *(rng.randrange(len(self.pool.group)) for _ in range(GROUP - 1 - len(kept)))]

    def draw_groups(self, kinds: Sequence[str], rng: random.Random, edited: float = 0.0) -> tuple[Tensor, Tensor]:
        """Draw rows ``(groups, GROUP)`` and prompt labels ``(groups, 5)``, one group for each of ``kinds``.

        ``edited`` is the share of groups whose prompt is changed, see `edit`.
        """
        chosen = torch.tensor([self.draw(kind, rng) for kind in kinds])
        labels = self.pool.labels[chosen[:, 0]]
        for group, rows in enumerate(chosen.tolist()):
            if rng.random() < edited:
                labels[group] = torch.tensor(self.edit(labels[group].tolist(), rows, rng))
        return chosen, labels

    def edit(self, labels: list[int], rows: list[int], rng: random.Random) -> list[int]:
        """Change a prompt toward what clips of its group show, or to anything, within the training split.

        Under the prompts that clips were made for, a model can memorise which of them is best; under changed prompts
        it has to judge.
        """
        while True:
            changed = list(labels)
            for place, name in enumerate(CHOICES):
                chance = rng.random()
                if labels[place] == len(CHOICES[name]) or chance < 0.5:
                    continue
                shown = int(self.shown[rng.choice(rows), place])
                changed[place] = shown if chance < 0.8 else rng.randrange(len(CHOICES[name]))
            if split_of(to_prompt(changed)) == "train":
                return changed

    def further_prompts(self, rows: Tensor, labels: Tensor, count: int, rng: random.Random) -> Tensor:
        """Return for each group its prompt ``(5,)`` and changed ones, see `edit`: shape ``(groups, count, 5)``."""
        return torch.tensor(
            [
                [own, *(self.edit(own, group, rng) for _ in range(count - 1))]
                for own, group in zip(labels.tolist(), rows.tolist(), strict=True)
            ]
        )

    def ratings(self, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the oracle's scores under the group's prompt, standardised over the pool, ``(groups, GROUP, 3)``."""
        return (scores(self.pool, rows, labels[:, None].expand(-1, GROUP, -1)) - self.origin) / self.spread

    def preferences(self, rows: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Simulate the labels of a fallible annotator for each pair and axis: 1, -1 or 0, ``(groups, pairs, 3)``."""
        value = self.ratings(rows, labels)
        difference = value[:, LEFT] - value[:, RIGHT]
        seen = difference + ANNOTATOR_NOISE * torch.randn(difference.shape, generator=generator)
        return seen.sign() * (seen.abs() > TIE)


def neighbours(combination: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """List for shape, colour and motion each the combinations that differ from ``combination`` in it alone."""
    return [
        [
            (*combination[:place], value, *combination[place + 1 :])
            for value in range(len(CHOICES[name]))
            if value != combination[place]
        ]
        for place, name in enumerate(tuple(CHOICES)[:COMBINATION])
    ]
