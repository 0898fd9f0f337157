r"""Learn a reward from a teacher of finished clips instead of people: no labels are needed.

The teacher scores clean clips; the latent reward is trained on these scores at every noise level. With the loss
``regression`` it becomes :math:`E[r(x_0, y) \mid x_\sigma, y]`. A clip is scored under the prompt it was made for and
under others: a reward that sees each clip under one prompt alone memorises the clips and learns little about prompts.

Reference:
    StitchVM, arXiv:2605.19804 (a clean reward distilled into the expectation under noise).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from nrg_sampler.judges.base import Judge
from nrg_sampler.training.cache import LatentCache, half, prompt_name, sigmas_name, step_name
from nrg_sampler.training.encoding import SHARD, PairEncoder
from nrg_sampler.training.pairs import PairData
from nrg_sampler.training.sources import ClipSource

NEAREST = 16  # of the prompts with the most words in common, one is drawn
TIE = 0.25  # in standard deviations of the teacher's scores; smaller differences count as a tie in accuracies


@dataclass(frozen=True)
class ScoredClip:
    """A clip and the prompts it is scored under, its own first."""

    clip: str
    prompts: tuple[str, ...]


class PromptPool:
    """Prompts that clips can be scored under although they were made for others.

    Args:
        prompts: What to choose from.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        """Index the prompts by their words."""
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


def assign_prompts(source: ClipSource, kept: Sequence[bool], others: int, seed: int = 0) -> list[ScoredClip]:
    """Choose the prompts that the kept clips of a source are scored under, from those the kept ones were made for.

    Args:
        source: The clips.
        kept: Which of them.
        others: Prompts of other clips, besides its own, for each clip.
        seed: Of the choice.

    Returns:
        One entry for each kept clip.
    """
    made_for = [prompt for prompt, keep in zip(source.prompts, kept, strict=True) if keep]
    pool = PromptPool(made_for)
    assigned = []
    for name, prompt, keep in zip(source.names, source.prompts, kept, strict=True):
        if keep:
            rng = random.Random(f"{seed}/{name}/{prompt}")
            assigned.append(ScoredClip(name, (prompt, *pool.draw(prompt, others, rng))))
    return assigned


class TeacherScores:
    """A teacher's scores of clips, cached together with the clips' latents.

    Args:
        teacher: Scores the clips.
        identity: Unique for the teacher, such as its name and a hash of its weights; scores are cached under it.
        cache: Holds latents, prompt features and scores.
        fps: Frames a second of the clips.
    """

    def __init__(self, teacher: Judge, identity: str, cache: LatentCache, fps: float) -> None:
        """Keep the teacher and the cache; nothing is scored yet."""
        self.axes, self.cache = tuple(teacher.axes), cache
        self._teacher, self._identity, self._fps = teacher, identity, fps

    def fill(self, source: ClipSource, clips: Sequence[ScoredClip], encoder: PairEncoder) -> Iterator[int]:
        """Make, encode and score what the cache lacks; an interruption costs a batch at most.

        Args:
            source: Makes the clips.
            clips: Which of them, and their prompts.
            encoder: Encodes the prompts.

        Yields:
            How many prompts and clips are done.

        Raises:
            ValueError: If the teacher's scores are not finite numbers, one per clip and axis.
        """
        done = 0
        prompts = list(dict.fromkeys(prompt for clip in clips for prompt in clip.prompts))
        for start in range(0, len(prompts), SHARD):
            missing = [text for text in prompts[start : start + SHARD] if prompt_name(text) not in self.cache]
            if missing:
                self.cache.add({prompt_name(text): half(encoder.prompt(text)) for text in missing})
            done += len(prompts[start : start + SHARD])
            yield done
        prompts_of: dict[str, list[str]] = {}
        for clip in clips:
            prompts_of.setdefault(clip.clip, []).extend(clip.prompts)
        for rows in source.batches():
            rows = [row for row in rows if source.names[row] in prompts_of]
            self._fill_batch(source, rows, prompts_of)
            done += len(rows)
            yield done

    def _fill_batch(self, source: ClipSource, rows: Sequence[int], prompts_of: dict[str, list[str]]) -> None:
        # New latents in one call and cached ones in another, so that a source never gets a mixture.
        unmade = [row for row in rows if source.names[row] not in self.cache]
        unscored = [row for row in rows if row not in unmade and self._missing(source.names[row], prompts_of)]
        for chosen, cached in ((unmade, False), (unscored, True)):
            if not chosen:
                continue
            latents = torch.stack([self.cache.get(source.names[row]).float() for row in chosen]) if cached else None
            made = source.make(chosen, latents)
            names = [source.names[row] for row in made.rows]
            new = {} if cached else {name: half(clip) for name, clip in zip(names, made.latents, strict=True)}
            if made.steps is not None and made.sigmas is not None:
                for name, steps in zip(names, made.steps, strict=True):
                    new[sigmas_name(name)] = made.sigmas.clone()
                    new |= {step_name(name, place): half(step) for place, step in enumerate(steps)}
            cells = [
                (place, source.names[row], text)
                for place, row in enumerate(made.rows)
                for text in self._missing(source.names[row], prompts_of)
            ]
            for start in range(0, len(cells), len(chosen)):  # the teacher is handed as many as are made together
                part = cells[start : start + len(chosen)]
                scores = self._scored(made.pixels[[place for place, _, _ in part]], [text for _, _, text in part])
                new |= {self._name(clip, text): row for (_, clip, text), row in zip(part, scores, strict=True)}
            if new:
                self.cache.add(new)

    def _missing(self, clip: str, prompts_of: dict[str, list[str]]) -> list[str]:
        """Prompts that a clip has no score under yet."""
        return [text for text in dict.fromkeys(prompts_of[clip]) if self._name(clip, text) not in self.cache]

    def _name(self, clip: str, prompt: str) -> str:
        return f"score/{hashlib.sha256(chr(0).join((self._identity, clip, prompt)).encode()).hexdigest()}"

    def _scored(self, clips: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            scores = self._teacher(clips, prompts, self._fps)
        expected = (len(prompts), len(self.axes))
        if not isinstance(scores, Tensor) or tuple(scores.shape) != expected or not scores.isfinite().all():
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            problem = "some that are not finite" if got == expected else str(got)
            raise ValueError(
                f"Expected the teacher's scores of shape {expected}, one per axis ({', '.join(self.axes)}), but got "
                f"{problem}; repair the teacher."
            )
        return scores.float().cpu()

    def scores(self, clips: Sequence[ScoredClip], own: bool = False) -> tuple[list[tuple[str, str]], Tensor]:
        """Read the cached scores.

        Args:
            clips: Which, and under which prompts.
            own: Only under the prompts that clips were made for.

        Returns:
            Clip and prompt of each score, and the scores ``(N, axes)``; clips that could not be used are left out.
        """
        cells = [
            (clip.clip, text)
            for clip in clips
            for text in (clip.prompts[:1] if own else clip.prompts)
            if self._name(clip.clip, text) in self.cache
        ]
        cells = list(dict.fromkeys(cells))
        rows = [self.cache.get(self._name(*cell)) for cell in cells]
        return cells, torch.stack(rows) if rows else torch.empty(0, len(self.axes))

    def pairs(
        self,
        clips: Sequence[ScoredClip],
        mean: Tensor,
        std: Tensor,
        own: bool = False,
        seed: int = 0,
        every: bool = False,
    ) -> PairData:
        """Pair the clips that were scored under the same prompt; every score is in at least one pair.

        Args:
            clips: Which, and under which prompts.
            mean: Of the teacher's scores, shape ``(axes,)``; the reward learns them in units of ``std`` from there.
            std: Their standard deviation.
            own: Only under the prompts that clips were made for.
            seed: Of the pairing.
            every: Pair each clip with each other of its prompt, rather than with one.

        Returns:
            Pairs with the teacher's scores, and its preferences where they differ by more than a tie.

        Raises:
            ValueError: If there is no score.
        """
        cells, scores = self.scores(clips, own)
        if not cells:
            raise ValueError("Expected clips that the teacher scored, but there are none; give more clips or prompts.")
        under: dict[str, list[int]] = {}
        for row, (_, prompt) in enumerate(cells):
            under.setdefault(prompt, []).append(row)
        rng, paired = random.Random(seed), list[tuple[int, int]]()
        for rows in under.values():
            if every and len(rows) > 1:
                paired += combinations(rows, 2)
                continue
            rng.shuffle(rows)
            paired += zip(rows[::2], rows[1::2], strict=False)  # an odd one out is paired below
            if len(rows) % 2:
                paired.append((rows[-1], rng.choice(rows[:-1] or rows)))
        first, second = (torch.tensor(side) for side in zip(*paired, strict=True))
        scaled = (scores - mean) / std
        difference = scaled[first] - scaled[second]
        return PairData(
            self.axes,
            [(cells[a][0], cells[b][0]) for a, b in paired],
            [cells[a][1] for a, _ in paired],
            difference.sign() * (difference.abs() > TIE),
            self.cache,
            torch.stack([scaled[first], scaled[second]], dim=-1),
            measured=torch.stack([scores[first], scores[second]], dim=-1),
        )


def mean_and_std(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of scores ``(N, axes)``, each ``(axes,)``.

    Raises:
        ValueError: If an axis never varies: nothing can be learned from it.
    """
    std = scores.std(dim=0, correction=0)
    if not bool((std > 1e-8 * (1 + scores.abs().amax(dim=0))).all()):
        raise ValueError(
            f"Expected a teacher whose scores differ between clips, but on one axis all {len(scores)} are the same; "
            "give clips that differ, or a teacher that is sensitive to it."
        )
    return scores.mean(dim=0), std
