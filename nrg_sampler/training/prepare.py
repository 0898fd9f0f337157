"""From a preference file and a pipeline to pairs in a latent cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nrg_sampler.checkpoints import pipeline_source, read_sampling
from nrg_sampler.runs.manifest import model_fingerprint
from nrg_sampler.training.cache import LatentCache
from nrg_sampler.training.decoding import ClipSettings, inspect_pairs
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.preferences import PreferenceTable, read_preferences

# What Wan models are made for, where a folder does not say.
WAN_CLIP = {"height": 480, "width": 832, "num_frames": 81, "fps": 16, "max_sequence_length": 512}


@dataclass
class Prepared:
    """Pairs whose clips are encoded.

    Args:
        table: The pairs that can be used, and the rows that cannot.
        cache: Their latents and prompt features.
        encoder: What made them; holds the pipeline.
    """

    table: PreferenceTable
    cache: LatentCache
    encoder: PairEncoder


def clip_settings(model: str, given: Mapping[str, Any]) -> ClipSettings:
    """How files become clips: as given, else as the model was made for."""
    made_for = {**WAN_CLIP, **read_sampling(pipeline_source(model))}
    names = ("height", "width", "num_frames", "fps")
    return ClipSettings(**{name: given[name] if given.get(name) is not None else made_for[name] for name in names})


def prepare_pairs(
    file: Path,
    pipe: Any,
    model: str,
    settings: ClipSettings,
    cache: Path,
    axes: Sequence[str] | None = None,
    videos: Path | None = None,
    strict: bool = False,
) -> Iterator[tuple[str, int, Prepared]]:
    """Read a preference file, open every clip and encode what the cache lacks.

    Args:
        file: The CSV.
        pipe: The pipeline.
        model: Its name, folder or Hub id.
        settings: How files become clips.
        cache: Folder for latents.
        axes: Which columns are axes, by default all that look like it.
        videos: Where relative paths start, by default at the file.
        strict: Stop at bad rows instead of leaving them out.

    Yields:
        What is being done, how much of it is done, and the pairs; complete once the generator ends.

    Raises:
        ValueError: If no row can be used or, if ``strict``, any cannot.
    """
    made_for = {**WAN_CLIP, **read_sampling(pipeline_source(model))}
    encoder = PairEncoder(pipe, settings, int(made_for["max_sequence_length"]))
    table = read_preferences(file, axes, videos)
    table.require(strict)
    key = {"model": model_fingerprint(pipeline_source(model)), **vars(settings), "tokens": encoder.max_sequence_length}
    prepared = Prepared(table, LatentCache(cache, key), encoder)
    for work, steps in (
        ("checking", inspect_pairs(table, settings)),
        ("encoding", encoder.fill(prepared.cache, table)),
    ):
        for done in steps:
            yield work, done, prepared
        table.require(strict)
