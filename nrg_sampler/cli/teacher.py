"""What the commands that ask a teacher have in common: options, and the way from clips to pairs with its scores."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nrg_sampler.checkpoints import BUNDLED
from nrg_sampler.cli.parser import positive, whole_number

if TYPE_CHECKING:
    from nrg_sampler.training.decoding import ClipSettings
    from nrg_sampler.training.pairs import PairData
    from nrg_sampler.training.preferences import BadRow
    from nrg_sampler.training.sources import ClipSource
    from nrg_sampler.training.teacher_scores import TeacherScores

# Of the steps and the guidance scale that the model was made for: rough clips teach what a good one is.
STEP_SHARES = (0.4, 0.6, 1.0)
GUIDANCE_SHARES = (0.25, 0.625, 1.0, 1.5)
WAN_SAMPLING = {"num_inference_steps": 50, "guidance_scale": 5.0}  # WanPipeline's own
SPLITS = {BUNDLED: "train", f"{BUNDLED}:validation": "validation", f"{BUNDLED}:test": "test"}


@dataclass
class Taught:
    """Pairs with a teacher's scores.

    Args:
        training: Those to train on; ``None`` if all were held out.
        held_out: Those whose prompts and clips are in none of the others; ``None`` if there are none.
        own: Those to train on whose clips were both made for their prompt: what the model samples.
        transformer: Of the pipeline.
        bad: Files that could not be used.
        about: The clips and the teacher in words.
    """

    training: PairData | None
    held_out: PairData | None
    own: PairData | None
    transformer: Any
    bad: list[BadRow]
    about: str


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Add who scores clips instead of people, and which."""
    group = parser.add_argument_group(
        "teacher (instead of labels)",
        "Clips are samples of the model (--prompts), video files (a CSV with path and prompt, or a folder, in place of "
        "PAIRS.csv), or both.",
    )
    group.add_argument(
        "--teacher",
        metavar="NAME",
        help="who scores: pixel, pixel:FOLDER, videoreward:FOLDER, module:FILE.py:NAME, oracle",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="sample clips of these prompts, one a line; 'shapes', 'shapes:validation' or 'shapes:test': the bundled world's",
    )
    group.add_argument("--clips", type=whole_number(1), default=1000, metavar="N", help="how many to sample (1000)")
    group.add_argument("--clips-per-prompt", type=whole_number(1), default=4, metavar="N", help="of those (4)")
    group.add_argument(
        "--sampling-steps", type=whole_number(1), nargs="+", metavar="N", help="drawn from (0.4, 0.6, 1 x the model's)"
    )
    group.add_argument(
        "--guidance-scales", type=positive, nargs="+", metavar="X", help="drawn from (0.25 to 1.5 x the model's)"
    )
    group.add_argument(
        "--other-prompts",
        type=whole_number(0),
        default=3,
        metavar="K",
        help="score each clip under K prompts of other clips too, half of them much like its own (3)",
    )
    group.add_argument(
        "--clip-batch", type=whole_number(1), default=4, metavar="N", help="clips sampled and scored together (4)"
    )
    group.add_argument("--clip-seed", type=whole_number(0), default=0, metavar="N", help="of the first sample (0)")


def taught(
    arguments: argparse.Namespace, pipe: Any, clips: ClipSettings, hold_out: float, device: Any, quiet: bool = False
) -> Taught:
    """Make clips, let the teacher score them and pair them, with a progress bar; bad files are listed on stderr.

    Raises:
        ValueError: If there is nothing to score, or the options do not fit.
    """
    from tqdm.auto import tqdm

    from nrg_sampler.checkpoints import pipeline_source, read_sampling
    from nrg_sampler.judges.base import judge_identity, load_judge
    from nrg_sampler.runs.manifest import model_fingerprint
    from nrg_sampler.training import prepare
    from nrg_sampler.training.cache import LatentCache
    from nrg_sampler.training.encoding import PairEncoder
    from nrg_sampler.training.teacher_scores import TeacherScores, assign_prompts

    source_of_model = pipeline_source(arguments.model)
    made_for = {**prepare.WAN_CLIP, **WAN_SAMPLING, **read_sampling(source_of_model)}
    encoder = PairEncoder(pipe, clips, int(made_for["max_sequence_length"]))
    teacher = load_judge(arguments.teacher, str(device))
    sources = _sources(arguments, pipe, encoder, made_for)
    key = {"model": model_fingerprint(source_of_model), **vars(clips), "tokens": encoder.max_sequence_length}
    cache = LatentCache(arguments.cache or arguments.out / "cache", {**key, "sampled in": arguments.dtype})
    lesson = TeacherScores(teacher, judge_identity(arguments.teacher), cache, clips.fps)
    found = Taught(None, None, None, encoder.transformer, [], "")
    sides: dict[bool, list[Any]] = {True: [], False: []}
    held = _held_out([prompt for source in sources for prompt in source.prompts], hold_out)
    with tqdm(unit="clip", disable=quiet or not sys.stderr.isatty()) as bar:
        for source in sources:
            tested = [held(prompt, name) for prompt, name in zip(source.prompts, source.names, strict=True)]
            for side in (True, False):
                questions = assign_prompts(
                    source, [test is side for test in tested], arguments.other_prompts, arguments.clip_seed
                )
                for done in lesson.fill(source, questions, encoder):
                    bar.set_description("held out" if side else "training")
                    bar.n = done
                    bar.refresh()
                sides[side] += questions
            found.bad += dict.fromkeys(source.bad)
    if not quiet:
        for bad in found.bad:
            print(f"nrg-sampler: left out: {bad}", file=sys.stderr)
    _pair(found, lesson, sides[False], sides[True])
    count = sum(len(source.names) for source in sources)
    found.about = (
        f"{count} clips, {_origin(arguments)}, scored by {arguments.teacher.partition(':')[0]} under their prompts and "
        f"{arguments.other_prompts} others each; no human labels"
    )
    return found


def _sources(arguments: argparse.Namespace, pipe: Any, encoder: Any, made_for: dict[str, Any]) -> list[ClipSource]:
    from nrg_sampler.training.sources import GeneratedClips, VideoFiles, plan_samples

    sources: list[ClipSource] = []
    if arguments.pairs is not None:
        sources.append(VideoFiles(encoder, arguments.pairs, arguments.videos, arguments.clip_batch))
    if arguments.prompts is not None:
        steps = arguments.sampling_steps or [
            max(1, round(share * made_for["num_inference_steps"])) for share in STEP_SHARES
        ]
        scales = arguments.guidance_scales or [share * made_for["guidance_scale"] for share in GUIDANCE_SHARES]
        texts = _prompts(arguments)
        planned = plan_samples(texts, arguments.clips, arguments.clips_per_prompt, steps, scales, arguments.clip_seed)
        sources.append(GeneratedClips(pipe, planned, encoder.settings, arguments.clip_batch))
    if not any(source.names for source in sources):
        lacking = next((f"; the first is {source.bad[0]}" for source in sources if source.bad), "")
        raise ValueError(
            f"Expected clips for the teacher, but got none{lacking}; name a CSV file or a folder of videos, or prompts "
            "to sample with --prompts."
        )
    return sources


def _prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of a file, or as many of the bundled world as there are groups of clips."""
    if arguments.prompts in SPLITS:
        return _bundled_prompts(SPLITS[arguments.prompts], -(-arguments.clips // arguments.clips_per_prompt))
    try:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a text file of prompts, one a line, or one of {', '.join(SPLITS)}, but {arguments.prompts} "
            f"cannot be read ({error})."
        ) from error
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise ValueError(f"Expected prompts in {arguments.prompts}, one a line, but it holds none.")
    return prompts


def _bundled_prompts(split: str, count: int) -> list[str]:
    """Captions of a split: of the training split any, in varied words; of the others each once, in the plainest."""
    from nrg_sampler.shapes.scenes import caption, prompts, sample_prompt

    if split != "train":
        return [caption(prompt) for prompt in prompts(split)[:count]]
    rng = random.Random("prompts for a teacher")
    return [caption(sample_prompt(rng), rng) for _ in range(count)]


def _held_out(prompts: list[str], share: float) -> Any:
    """Tell of each prompt and clip whether it is held out: by prompt, or by clip where prompts are few."""
    from nrg_sampler.training.preferences import FEW_PROMPTS, in_share

    by_prompt = len(set(prompts)) >= FEW_PROMPTS
    return lambda prompt, name: in_share(prompt if by_prompt else name, share, "held-out")


def _pair(found: Taught, lesson: TeacherScores, trained: list[Any], tested: list[Any]) -> None:
    """Fill in the pairs, in units of the spread of the teacher's scores of what is trained on."""
    from nrg_sampler.training.teacher_scores import mean_and_std

    _, scores = lesson.scores(trained or tested)
    if not len(scores):
        raise ValueError("Expected clips that the teacher could score, but none can be used; see the reasons above.")
    mean, std = mean_and_std(scores)
    if trained:
        found.training = lesson.pairs(trained, mean, std)
        found.own = lesson.pairs(trained, mean, std, own=True)
    if tested:
        found.held_out = lesson.pairs(tested, mean, std)


def _origin(arguments: argparse.Namespace) -> str:
    origins = [] if arguments.pairs is None else [f"of {arguments.pairs.name}"]
    if arguments.prompts is not None:
        name = arguments.prompts if arguments.prompts in SPLITS else Path(arguments.prompts).name
        origins.append(f"sampled for the prompts of {name}")
    return " and ".join(origins)
