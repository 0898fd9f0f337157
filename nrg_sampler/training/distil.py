"""From a teacher to pairs with its scores: make clips, let the teacher score them, pair them, hold some out."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.files import read_text
from nrg_sampler.judges.base import Judge
from nrg_sampler.runs.progress import Progress
from nrg_sampler.training.cache import LatentCache
from nrg_sampler.training.csv_table import LINE_END, BadRow
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.preferences import FEW_PROMPTS, in_share
from nrg_sampler.training.prepare import HELD_OUT, TrainingData, model_settings
from nrg_sampler.training.settings import TeacherClips
from nrg_sampler.training.sources import ClipSource, GeneratedClips, VideoFiles, plan_samples
from nrg_sampler.training.teacher_scores import ScoredClip, TeacherScores, assign_prompts, mean_and_std

# Shares of the steps and the guidance scale that the model was made for: the teacher has to see poor clips as well.
STEP_SHARES = (0.4, 0.6, 1.0)
GUIDANCE_SHARES = (0.25, 0.625, 1.0, 1.5)
SPLITS = {BUNDLED: "train", f"{BUNDLED}:validation": "validation", f"{BUNDLED}:test": "test"}


@dataclass(frozen=True)
class ClipSplit:
    """Clips to train on and clips to test on, with the prompts that each is scored under."""

    training: list[ScoredClip]
    held_out: list[ScoredClip]


def prepare_distillation(
    data: TeacherClips, model: str, encoder: PairEncoder, cache: LatentCache, hold_out: float, device: torch.device
) -> Generator[Progress, None, TrainingData]:
    """Make clips, let the teacher score them, and pair those scored under the same prompt.

    Args:
        data: The teacher and its clips.
        model: Name, folder or Hub id of the pipeline.
        encoder: Holds the pipeline, which samples clips, and encodes files and prompts.
        cache: Holds latents, prompt features and scores.
        hold_out: Share of the prompts to test on; of the clips where there are few prompts.
        device: Where the teacher runs.

    Yields:
        How many prompts and clips are done.

    Returns:
        The pairs, with scores in standard deviations of the teacher's scores of what is trained on.

    Raises:
        ValueError: If there is nothing to score, or the teacher's scores are unusable.
    """
    teacher, identity = load_teacher(data, device)
    sources = clip_sources(data, model, encoder)
    yield Progress("reading", sum(len(source.names) for source in sources), unit="clip", notes=_read(data, sources))
    _require_all(data, sources)
    scores = TeacherScores(teacher, identity, cache, encoder.settings.fps)
    clips, bad = yield from _score(data, sources, scores, encoder, hold_out)
    _require_all(data, sources)
    count = sum(len(source.names) for source in sources)
    description = (
        f"{count} clips, {_origin(data)}, scored by {data.teacher_name} under their prompts and {data.other_prompts} "
        "others each; no human labels"
    )
    return _pair(scores, clips, bad, description, along=bool(data.levels))


def load_teacher(data: TeacherClips, device: torch.device) -> tuple[Judge, str]:
    """Return the teacher and what its scores are cached under."""
    from nrg_sampler.judges.loading import judge_identity, load_judge

    if isinstance(data.teacher, str):
        return load_judge(data.teacher, str(device)), judge_identity(data.teacher)
    return data.teacher, f"callable {data.identity}"


def clip_sources(data: TeacherClips, model: str, encoder: PairEncoder) -> list[ClipSource]:
    """Return where clips come from: video files, samples of the model, or both.

    Raises:
        ValueError: If there is no usable clip.
    """
    sources: list[ClipSource] = []
    if data.files is not None:
        sources.append(VideoFiles(encoder, data.files, data.videos, data.batch))
    if data.prompts is not None:
        made_for = model_settings(model)
        # Trajectories are wanted as they are sampled in use, whatever else a reward should see.
        step_shares, scale_shares = ((1.0,), (1.0,)) if data.levels else (STEP_SHARES, GUIDANCE_SHARES)
        steps = data.sampling_steps or [
            max(1, round(share * made_for["num_inference_steps"])) for share in step_shares
        ]
        scales = data.guidance_scales or [share * made_for["guidance_scale"] for share in scale_shares]
        wanted = data.num_clips, data.clips_per_prompt, steps, scales, data.seed
        planned = plan_samples(read_prompts(data), *wanted, data.levels)
        sources.append(GeneratedClips(encoder.pipe, planned, encoder.settings, data.batch))
    if not any(source.names for source in sources):
        lacking = next((f"; the first is {source.bad[0]}" for source in sources if source.bad), "")
        raise ValueError(f"Expected clips for the teacher, but got none{lacking}; give videos that can be used.")
    return sources


def _read(data: TeacherClips, sources: list[ClipSource]) -> tuple[str, ...]:
    """What was read of files and what was passed over, in words."""
    if data.files is None:
        return ()
    count, bad = (sum(len(getattr(source, name)) for source in sources) for name in ("names", "bad"))
    first = f"{_origin(data)}: {count} clips" + (f", {bad} left out" if bad else "")
    return (first, *(note for source in sources for note in source.notes))


def _require_all(data: TeacherClips, sources: list[ClipSource]) -> None:
    """Stop if ``strict`` and anything was left out or passed over."""
    reasons = [str(reason) for source in sources for reason in (*source.bad, *source.notes)]
    if data.strict and reasons:
        raise ValueError(f"Expected every clip to be usable, but {len(reasons)} are not; the first: {reasons[0]}.")


def read_prompts(data: TeacherClips) -> list[str]:
    """Return the prompts to sample with: those given, those of a file, or as many of the bundled world as are needed.

    Raises:
        ValueError: If a file cannot be read, or there is no prompt.
    """
    if isinstance(data.prompts, str) and data.prompts in SPLITS:
        return bundled_prompts(SPLITS[data.prompts], -(-data.num_clips // data.clips_per_prompt))
    if not isinstance(data.prompts, str | Path):
        lines = list(data.prompts or ())
    else:
        try:
            lines = LINE_END.split(read_text(Path(data.prompts)))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"Expected a text file of prompts, one a line, or one of {', '.join(SPLITS)}, but {data.prompts} "
                f"cannot be read ({error})."
            ) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError(f"Expected prompts to sample with, but {data.prompts} holds none; write one a line.")
    return prompts


def bundled_prompts(split: str, count: int) -> list[str]:
    """Return captions of a split: of the training split any, in varied words; of the others each once, plainly worded.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        count: How many; the other splits may have fewer.
    """
    from nrg_sampler.shapes.scenes import caption, prompts, sample_prompt

    if split != "train":
        return [caption(prompt) for prompt in prompts(split)[:count]]
    rng = random.Random("prompts for a teacher")
    return [caption(sample_prompt(rng), rng) for _ in range(count)]


def _score(
    data: TeacherClips, sources: list[ClipSource], scores: TeacherScores, encoder: PairEncoder, hold_out: float
) -> Generator[Progress, None, tuple[ClipSplit, list[BadRow]]]:
    """Fill the cache with the scores of all clips, those held out first."""
    clips, bad = ClipSplit([], []), list[BadRow]()
    is_held_out = _held_out([prompt for source in sources for prompt in source.prompts], hold_out)
    for source in sources:
        held_out = [is_held_out(prompt, name) for prompt, name in zip(source.prompts, source.names, strict=True)]
        for work, side, chosen in (
            ("held out", clips.held_out, held_out),
            ("training", clips.training, [not test for test in held_out]),
        ):
            assigned = assign_prompts(source, chosen, data.other_prompts, data.seed)
            for done in scores.fill(source, assigned, encoder):
                yield Progress(work, done, unit="clip")
            side += assigned
        bad += dict.fromkeys(source.bad)
    return clips, bad


def _held_out(prompts: list[str], share: float) -> Callable[[str, str], bool]:
    """Return whether a prompt and clip are held out: drawn by prompt, or by clip where prompts are few."""
    by_prompt = len(set(prompts)) >= FEW_PROMPTS
    return lambda prompt, name: in_share(prompt if by_prompt else name, share, HELD_OUT)


def _pair(scores: TeacherScores, clips: ClipSplit, bad: list[BadRow], description: str, along: bool) -> TrainingData:
    _, values = scores.scores(clips.training or clips.held_out)
    if not len(values):
        reason = f"; the first is {bad[0]}" if bad else ""
        raise ValueError(f"Expected clips that the teacher could score, but none can be used{reason}; repair them.")
    mean, std = mean_and_std(values)
    training = own = held_out = None
    if clips.training:
        training = scores.pairs(clips.training, mean, std)
        # Both clips made for their prompt: what the model samples, so its statistics normalise the reward.
        own = scores.pairs(clips.training, mean, std, own=True)
    if clips.held_out:
        # Along trajectories a reward is graded by what guidance chooses between: samples of one prompt, under it.
        held_out = scores.pairs(clips.held_out, mean, std, own=along, every=along)
    return TrainingData(training, held_out, own, bad, description)


def _origin(data: TeacherClips) -> str:
    origins = [] if data.files is None else [f"of {data.files.name}"]
    if data.prompts is not None:
        origins.append(f"sampled for {_prompts_in_words(data.prompts)}")
    return " and ".join(origins)


def _prompts_in_words(prompts: Any) -> str:
    if not isinstance(prompts, str | Path):
        return f"{len(prompts)} prompts"
    return f"the prompts of {prompts if prompts in SPLITS else Path(prompts).name}"
