"""From a preference file and a pipeline to encoded pairs: some to train on, others held out."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nrg_sampler.checkpoints import pipeline_source, read_sampling
from nrg_sampler.runs.manifest import model_fingerprint
from nrg_sampler.runs.progress import Progress
from nrg_sampler.training.cache import LatentCache
from nrg_sampler.training.csv_table import BadRow
from nrg_sampler.training.decoding import ClipSettings, inspect_pairs
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.pairs import PairData, subset
from nrg_sampler.training.preferences import PreferenceTable, read_preferences, split_pairs
from nrg_sampler.training.settings import EncodingSettings, LabelledPairs

HELD_OUT, FRACTION = "held-out", "fraction"  # names of the two draws; each draws the same pairs in every run
# What Wan models are made for, where a folder does not say.
WAN_CLIP = {"height": 480, "width": 832, "num_frames": 81, "fps": 16, "max_sequence_length": 512}
WAN_SAMPLING = {"num_inference_steps": 50, "guidance_scale": 5.0}


@dataclass(frozen=True)
class TrainingData:
    """Pairs whose clips and prompts are encoded.

    Args:
        training: Those to train on; ``None`` if all were held out.
        held_out: Those to test on; ``None`` if there are none.
        samples: Those whose clips give mean and standard deviation of the raw reward.
        bad: Rows and files that were left out.
        description: The data in words, for the model card.
    """

    training: PairData | None
    held_out: PairData | None
    samples: PairData | None
    bad: list[BadRow]
    description: str

    def progress(self) -> Progress:
        """Return that the data is prepared, with a note for each row and file that was left out."""
        pairs = sum(len(part) for part in (self.training, self.held_out) if part is not None)
        return Progress("prepared", pairs, unit="pair", notes=tuple(f"left out: {bad}" for bad in self.bad))


def model_settings(model: str) -> dict[str, Any]:
    """Return size, length, steps and guidance scale that a model was made for, by name, folder or Hub id."""
    return {**WAN_CLIP, **WAN_SAMPLING, **read_sampling(pipeline_source(model))}


def load_encoder(
    settings: EncodingSettings, device: torch.device, trained_on: Mapping[str, Any] | None = None
) -> PairEncoder:
    """Load the pipeline, without its reward, as an encoder of clips and prompts.

    Args:
        settings: Which pipeline, and what is set of the clips.
        device: Where it runs.
        trained_on: Size, length and frame rate that come before the model's own, those that a reward was trained on.

    Raises:
        ValueError: If the pipeline is not supported or cannot encode such clips.
    """
    from nrg_sampler.hosts.pipeline import NRGFlowPipeline

    pipe = NRGFlowPipeline.from_pretrained(settings.model, reward_model=None, dtype=getattr(torch, settings.dtype))
    pipe.set_progress_bar_config(disable=True)
    made_for = model_settings(settings.model)
    clip = {**made_for, **(trained_on or {}), **settings.clip}
    names = ("height", "width", "num_frames", "fps")
    clips = ClipSettings(**{name: clip[name] for name in names})
    return PairEncoder(pipe.to(device), clips, int(made_for["max_sequence_length"]))


def open_cache(encoding: EncodingSettings, encoder: PairEncoder, folder: Path, sampled: bool) -> LatentCache:
    """Open the cache of encoded clips and prompts.

    Args:
        encoding: Names the model, its dtype, and the folder if one is set.
        encoder: Its clip settings and prompt length.
        folder: Where the cache is by default.
        sampled: Whether there are samples and a teacher's scores besides.
    """
    key: dict[str, Any] = {
        "model": model_fingerprint(pipeline_source(encoding.model)),
        **vars(encoder.settings),
        "tokens": encoder.max_sequence_length,
    }
    if sampled:
        key["sampled in"] = encoding.dtype
    elif encoding.dtype != "float32":
        key["encoded in"] = encoding.dtype
    return LatentCache(encoding.cache or folder, key)


def prepare_pairs(
    pairs: LabelledPairs, encoder: PairEncoder, cache: LatentCache
) -> Generator[Progress, None, PreferenceTable]:
    """Read a preference file, open every clip and encode what the cache lacks.

    Args:
        pairs: The file and what is read of it.
        encoder: Encodes clips and prompts.
        cache: Holds the latents.

    Yields:
        What was read, then how many files are checked, then how many clips and prompts are encoded.

    Returns:
        The pairs that can be used, and the rows that cannot.

    Raises:
        ValueError: If no row can be used or, if ``strict``, any cannot.
    """
    table = read_preferences(pairs.file, pairs.axes, pairs.videos)
    yield Progress("reading", len(table.pairs), unit="row", notes=(f"{pairs.file.name}: {table.describe()}",))
    table.require(pairs.strict)
    for work, steps in (
        ("checking", inspect_pairs(table, encoder.settings)),
        ("encoding", encoder.fill(cache, table)),
    ):
        for done in steps:
            yield Progress(work, done, unit="file")
        table.require(pairs.strict)
    return table


def prepare_training(
    pairs: LabelledPairs, encoder: PairEncoder, cache: LatentCache, hold_out: float
) -> Generator[Progress, None, TrainingData]:
    """Prepare pairs and split them: some are held out, of the others a fraction is trained on.

    Yields:
        Progress of :func:`prepare_pairs`.

    Raises:
        ValueError: If no pair is left to train on.
    """
    table = yield from prepare_pairs(pairs, encoder, cache)
    held_out = held_out_pairs(table, hold_out)
    chosen = split_pairs(table.pairs, pairs.fraction, FRACTION)  # a larger share holds all of a smaller one
    trained = [keep and not test for keep, test in zip(chosen, held_out, strict=True)]
    if not any(trained):
        raise ValueError(
            f"Expected pairs to train on, but `hold_out` {hold_out:g} and `fraction` {pairs.fraction:g} leave none of "
            f"{len(table.pairs)}; hold out less, or add pairs."
        )
    training = PairData.of(subset(table, trained), cache)
    tested = PairData.of(subset(table, held_out), cache) if any(held_out) else None
    return TrainingData(training, tested, training, table.bad, pairs.file.name)


def prepare_evaluation(
    pairs: LabelledPairs, encoder: PairEncoder, cache: LatentCache, axes: Sequence[str], held_out: float | None
) -> Generator[Progress, None, TrainingData]:
    """Prepare pairs to evaluate on: all of them, or those that a training held out.

    Yields:
        Progress of :func:`prepare_pairs`.

    Raises:
        ValueError: If no pair is left.
    """
    table = yield from prepare_pairs(replace(pairs, axes=tuple(axes)), encoder, cache)
    chosen = table if held_out is None else subset(table, held_out_pairs(table, held_out))
    chosen.require()
    return TrainingData(None, PairData.of(chosen, cache), None, table.bad, pairs.file.name)


def held_out_pairs(table: PreferenceTable, share: float) -> list[bool]:
    """Return which pairs of a table are held out, the same in every run."""
    return list(split_pairs(table.pairs, share, HELD_OUT))
