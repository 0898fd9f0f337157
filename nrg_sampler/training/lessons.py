r"""Learn a reward from a teacher of finished clips instead of people: no labels are needed.

The teacher scores clean clips; the latent reward is trained on what it says of them, at every noise level. With the
loss ``regression`` it becomes :math:`E[r(x_0, y) \mid x_\sigma, y]`. A clip is scored under the prompt it was made for
and under others: a reward that meets each clip under one prompt only learns the clips by heart and little about
prompts.

Reference:
    StitchVM, arXiv:2605.19804 (a clean reward distilled into the expectation under noise).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nrg_sampler.training.cache import LatentCache, half, prompt_name
from nrg_sampler.training.encoding import SHARD, PairEncoder
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.sources import ClipSource

NEAREST = 16  # of the prompts with the most words in common, one is drawn
TIE = 0.25  # in standard deviations of the teacher's scores; smaller differences count as a tie in accuracies


class Teacher(Protocol):
    """Whoever scores finished clips, higher is better; judges do."""

    axes: tuple[str, ...]

    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Return scores ``(B, axes)`` of clips ``(B, 3, T, H, W)`` in ``[0, 1]``."""
        ...


@dataclass(frozen=True)
class Question:
    """A clip and the prompts it is scored under, its own first."""

    clip: str
    prompts: tuple[str, ...]


class PromptPool:
    """Prompts that clips can be judged by although they were made for others.

    Args:
        prompts: What to choose from.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = sorted(set(prompts))
        self._words = [frozenset(prompt.lower().split()) for prompt in self._prompts]
        self._nearest: dict[str, list[str]] = {}

    def draw(self, own: str, count: int, rng: random.Random) -> list[str]:
        """Draw up to ``count`` prompts besides ``own``: half of them share most words with it, the others are any."""
        if count < 1:
            return []
        if own not in self._nearest:
            self._nearest[own] = self._near(own)
        near = self._nearest[own]
        chosen = rng.sample(near, min((count + 1) // 2, len(near)))
        others = [prompt for prompt in self._prompts if prompt != own and prompt not in chosen]
        return chosen + rng.sample(others, min(count - len(chosen), len(others)))

    def _near(self, own: str) -> list[str]:
        words = frozenset(own.lower().split())
        shared = [(-len(words & other) / max(len(words | other), 1), index) for index, other in enumerate(self._words)]
        ranked = [self._prompts[index] for _, index in sorted(shared)]
        return [prompt for prompt in ranked if prompt != own][:NEAREST]


def ask(source: ClipSource, kept: Sequence[bool], others: int, seed: int = 0) -> list[Question]:
    """Choose the prompts that the kept clips of a source are scored under, among those the kept ones were made for.

    Args:
        source: The clips.
        kept: Which of them.
        others: Prompts of other clips, besides its own, for each clip.
        seed: Of the choice.
    """
    made_for = [prompt for prompt, keep in zip(source.prompts, kept, strict=True) if keep]
    pool = PromptPool(made_for)
    questions = []
    for name, prompt, keep in zip(source.names, source.prompts, kept, strict=True):
        if keep:
            rng = random.Random(f"{seed}/{name}/{prompt}")
            questions.append(Question(name, (prompt, *pool.draw(prompt, others, rng))))
    return questions


class Lesson:
    """What a teacher says of clips, kept with their latents.

    Args:
        teacher: Who scores.
        identity: Tells the teacher from others in the cache, as its name and weights do.
        cache: Holds latents, prompt features and scores.
        fps: Frames a second of the clips.
    """

    def __init__(self, teacher: Teacher, identity: str, cache: LatentCache, fps: float) -> None:
        self.axes, self.cache = tuple(teacher.axes), cache
        self._teacher, self._identity, self._fps = teacher, identity, fps

    def fill(self, source: ClipSource, questions: Sequence[Question], encoder: PairEncoder) -> Iterator[int]:
        """Make, encode and score what the cache lacks; an interruption costs a batch at most.

        Args:
            source: The clips.
            questions: What to ask about them.
            encoder: Encodes the prompts.

        Yields:
            How many prompts and clips are done.

        Raises:
            ValueError: If the teacher's scores are not finite numbers, one per clip and axis.
        """
        done = 0
        prompts = list(dict.fromkeys(prompt for question in questions for prompt in question.prompts))
        for start in range(0, len(prompts), SHARD):
            missing = [text for text in prompts[start : start + SHARD] if prompt_name(text) not in self.cache]
            if missing:
                self.cache.add({prompt_name(text): half(encoder.prompt(text)) for text in missing})
            done += len(prompts[start : start + SHARD])
            yield done
        asked: dict[str, list[str]] = {}
        for question in questions:
            asked.setdefault(question.clip, []).extend(question.prompts)
        for rows in source.batches():
            rows = [row for row in rows if source.names[row] in asked]
            self._fill_batch(source, rows, asked)
            done += len(rows)
            yield done

    def _fill_batch(self, source: ClipSource, rows: Sequence[int], asked: dict[str, list[str]]) -> None:
        # New latents in one call and known ones in another, so that whoever makes them need not tell them apart.
        unmade = [row for row in rows if source.names[row] not in self.cache]
        made = [row for row in rows if row not in unmade and self._open(source.names[row], asked)]
        for chosen, known in ((unmade, False), (made, True)):
            if not chosen:
                continue
            latents = torch.stack([self.cache.get(source.names[row]).float() for row in chosen]) if known else None
            usable, latents, pixels = source.make(chosen, latents)
            found = {} if known else {source.names[row]: half(clip) for row, clip in zip(usable, latents, strict=True)}
            cells = [
                (place, source.names[row], text)
                for place, row in enumerate(usable)
                for text in self._open(source.names[row], asked)
            ]
            for start in range(0, len(cells), len(chosen)):  # the teacher is handed as many as are made together
                part = cells[start : start + len(chosen)]
                scores = self._scored(pixels[[place for place, _, _ in part]], [text for _, _, text in part])
                found |= {self._name(clip, text): row for (_, clip, text), row in zip(part, scores, strict=True)}
            if found:
                self.cache.add(found)

    def _open(self, clip: str, asked: dict[str, list[str]]) -> list[str]:
        """Prompts that a clip has no score under yet."""
        return [text for text in dict.fromkeys(asked[clip]) if self._name(clip, text) not in self.cache]

    def _name(self, clip: str, prompt: str) -> str:
        return f"score/{hashlib.sha256(chr(0).join((self._identity, clip, prompt)).encode()).hexdigest()}"

    def _scored(self, clips: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            scores = self._teacher(clips, prompts, self._fps)
        expected = (len(prompts), len(self.axes))
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected or not scores.isfinite().all():
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            said = "some that are not finite" if got == expected else str(got)
            raise ValueError(
                f"Expected the teacher's scores of shape {expected}, one per axis ({', '.join(self.axes)}), but got "
                f"{said}; repair the teacher."
            )
        return scores.float().cpu()

    def scores(self, questions: Sequence[Question], own: bool = False) -> tuple[list[tuple[str, str]], Tensor]:
        """What the teacher said.

        Args:
            questions: What was asked.
            own: Only under the prompts that clips were made for.

        Returns:
            Clip and prompt of each score, and the scores ``(N, axes)``; clips that could not be used are left out.
        """
        cells = [
            (question.clip, text)
            for question in questions
            for text in (question.prompts[:1] if own else question.prompts)
            if self._name(question.clip, text) in self.cache
        ]
        cells = list(dict.fromkeys(cells))
        found = [self.cache.get(self._name(*cell)) for cell in cells]
        return cells, torch.stack(found) if found else torch.empty(0, len(self.axes))

    def pairs(
        self, questions: Sequence[Question], mean: Tensor, std: Tensor, own: bool = False, seed: int = 0
    ) -> PairData:
        """Put the clips that were scored under a prompt together in twos, every score at least once.

        Args:
            questions: What was asked.
            mean: Of the teacher's scores, shape ``(axes,)``; the reward learns them in units of ``std`` from there.
            std: Their standard deviation.
            own: Only under the prompts that clips were made for.
            seed: Of who meets whom.

        Returns:
            Pairs with the teacher's scores, and its preferences where they differ by more than a tie.

        Raises:
            ValueError: If there is no score.
        """
        cells, scores = self.scores(questions, own)
        if not cells:
            raise ValueError("Expected clips that the teacher scored, but there are none; give more clips or prompts.")
        under: dict[str, list[int]] = {}
        for row, (_, prompt) in enumerate(cells):
            under.setdefault(prompt, []).append(row)
        rng, met = random.Random(seed), list[tuple[int, int]]()
        for rows in under.values():
            rng.shuffle(rows)
            met += zip(rows[::2], rows[1::2])
            if len(rows) % 2:
                met.append((rows[-1], rng.choice(rows[:-1] or rows)))
        first, second = (torch.tensor(side) for side in zip(*met, strict=True))
        scaled = (scores - mean) / std
        difference = scaled[first] - scaled[second]
        return PairData(
            self.axes,
            [(cells[a][0], cells[b][0]) for a, b in met],
            [cells[a][1] for a, _ in met],
            difference.sign() * (difference.abs() > TIE),
            self.cache,
            torch.stack([scaled[first], scaled[second]], dim=-1),
        )


def spread(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of scores ``(N, axes)``, each ``(axes,)``.

    Raises:
        ValueError: If an axis never varies: nothing can be learned from it.
    """
    std = scores.std(dim=0, correction=0)
    if not bool((std > 1e-8 * (1 + scores.abs().amax(dim=0))).all()):
        raise ValueError(
            f"Expected a teacher whose scores differ between clips, but on one axis all {len(scores)} are the same; "
            "give clips that differ, or a teacher that sees it."
        )
    return scores.mean(dim=0), std
