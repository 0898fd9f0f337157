"""Sources of the clips that a teacher scores: samples of the model itself, or video files with their prompts."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nrg_sampler.files import read_text
from nrg_sampler.hosts.recording import recorded_steps
from nrg_sampler.json_text import to_json
from nrg_sampler.rewards.decoding import decoded
from nrg_sampler.training.cache import clip_name
from nrg_sampler.training.csv_table import LINE_END, BadRow, read_csv
from nrg_sampler.training.decoding import ClipSettings, UnreadableClipError, read_clip
from nrg_sampler.training.encoding import PairEncoder
from nrg_sampler.training.preferences import is_file

PATHS = ("path", "path_A", "path_B")
VIDEOS = (".mp4", ".m4v", ".mov", ".webm", ".mkv")  # in a folder; a table may name any file
BESIDE = (".txt", ".json", ".png")  # what stands beside a video of the same name: prompt, manifest, picture
LISTED = 10  # names in a message


class MadeClips(NamedTuple):
    """Clips of a source.

    Args:
        rows: Their indices in the source.
        latents: Shape ``(B, C, T', H', W')``.
        pixels: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
        steps: Latents and velocities on the way to them, shape ``(B, K, 2, C, T', H', W')``; ``None`` if not kept.
        sigmas: Noise levels of these steps, shape ``(K,)``.
    """

    rows: list[int]
    latents: Tensor
    pixels: Tensor
    steps: Tensor | None = None
    sigmas: Tensor | None = None


class ClipSource(Protocol):
    """Clips that a teacher can score.

    Args:
        names: Of the clips' latents in a cache.
        prompts: The prompt of each clip.
        bad: Rows and files that cannot be used.
        notes: What was passed over, in words.
    """

    names: list[str]
    prompts: list[str]
    bad: list[BadRow]
    notes: tuple[str, ...]

    def batches(self) -> list[list[int]]:
        """Return the indices of clips that are made together; each of them once."""
        ...

    def make(self, indices: Sequence[int], latents: Tensor | None) -> MadeClips:
        """Make some clips of one batch, those that can be made.

        Args:
            indices: Of the clips.
            latents: Of the clips, shape ``(B, C, T', H', W')``, if they are cached.
        """
        ...


@dataclass(frozen=True)
class Sample:
    """All that a sample of the model depends on, apart from the model and the size.

    Args:
        prompt: The prompt.
        seed: Of the initial noise.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance.
        levels: Noise levels at which latents and velocity are kept.
    """

    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    levels: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """Unique for the settings; the latents are cached under it."""
        decisive = {name: value for name, value in vars(self).items() if name != "levels" or value}
        return f"sample/{hashlib.sha256(to_json(decisive, sort_keys=True).encode()).hexdigest()}"


def plan_samples(
    prompts: Sequence[str],
    count: int,
    per_prompt: int,
    steps: Sequence[int],
    guidance_scales: Sequence[float],
    seed: int = 0,
    levels: tuple[float, ...] = (),
) -> list[Sample]:
    """Plan samples at various settings; a larger ``count`` begins with those of a smaller one.

    Args:
        prompts: Taken in turn; after the last one the first comes again.
        count: How many samples.
        per_prompt: How many of a prompt before the next one.
        steps: Step counts to draw from.
        guidance_scales: Scales to draw from.
        seed: Of the first sample; the next one's is one more.
        levels: Noise levels at which latents and velocity are kept.

    Raises:
        ValueError: If there is nothing to draw from.
    """
    if not prompts or not steps or not guidance_scales:
        raise ValueError("Expected at least one prompt, step count and guidance scale to sample with, but got none.")
    planned = []
    for index in range(count):
        rng = random.Random(f"settings/{seed + index}")
        prompt = prompts[index // per_prompt % len(prompts)]
        chosen = rng.choice(list(steps)), float(rng.choice(list(guidance_scales)))
        planned.append(Sample(prompt, seed + index, *chosen, levels))
    return planned


class GeneratedClips:
    """Samples of a pipeline, kept as the latents it ends with.

    Args:
        pipe: An ``NRGFlowPipeline``; it samples without a reward.
        samples: What to sample.
        settings: Size and length of the clips.
        batch: Clips sampled together, at most.
    """

    def __init__(self, pipe: Any, samples: Sequence[Sample], settings: ClipSettings, batch: int = 8) -> None:
        """Keep the plan; nothing is sampled yet."""
        self.samples, self.bad, self.notes = list(samples), list[BadRow](), tuple[str, ...]()
        self.names = [sample.name for sample in samples]
        self.prompts = [sample.prompt for sample in samples]
        self._pipe, self._settings, self._batch = pipe, settings, batch

    def batches(self) -> list[list[int]]:
        """Return batches of samples with the same settings of the sampler, in the order of the first of each."""
        alike: dict[tuple[int, float], list[int]] = {}
        for index, sample in enumerate(self.samples):
            alike.setdefault((sample.steps, sample.guidance_scale), []).append(index)
        size = self._batch
        return sorted(rows[at : at + size] for rows in alike.values() for at in range(0, len(rows), size))

    @torch.no_grad()
    def make(self, indices: Sequence[int], latents: Tensor | None) -> MadeClips:
        """Sample clips with the same settings, unless their latents are cached, and decode them."""
        made = MadeClips(list(indices), latents, torch.empty(0)) if latents is not None else self._sampled(indices)
        vae = self._pipe.vae
        pixels = torch.cat([decoded(vae, clip.to(vae.device)) for clip in made.latents.float().split(1)])
        return made._replace(pixels=pixels)

    def _sampled(self, indices: Sequence[int]) -> MadeClips:
        chosen = [self.samples[index] for index in indices]
        with recorded_steps(self._pipe) as recording:
            latents = self._pipe(
                [sample.prompt for sample in chosen],
                height=self._settings.height,
                width=self._settings.width,
                num_frames=self._settings.num_frames,
                num_inference_steps=chosen[0].steps,
                guidance_scale=chosen[0].guidance_scale,
                generator=[torch.Generator().manual_seed(sample.seed) for sample in chosen],
                reward_scale=0.0,
                output_type="latent",
            ).frames
        levels = chosen[0].levels
        sigmas, steps = recording.nearest(levels) if levels else (None, None)
        return MadeClips(list(indices), latents, torch.empty(0), steps, sigmas)


class VideoFiles:
    """Video files with their prompts.

    Args:
        encoder: Encodes them.
        source: A CSV file with the columns ``path`` (or VideoReward's ``path_A`` and ``path_B``) and ``prompt``, or a
            folder of videos (mp4, m4v, mov, webm, mkv), each beside its manifest or a text file of its name with the
            prompt.
        videos: Where relative paths in the CSV file start; at the file by default.
        batch: Files read together.

    Raises:
        ValueError: If the source cannot be read or lacks a column.
    """

    def __init__(self, encoder: PairEncoder, source: Path, videos: Path | None = None, batch: int = 8) -> None:
        """List the files; none is decoded yet."""
        self._encoder, self._batch, self.notes = encoder, batch, tuple[str, ...]()
        if source.is_dir():
            found, self.bad, self.notes = _in_folder(source)
        else:
            found, self.bad = _in_table(source, videos or source.parent)
        rows: dict[tuple[Path, str], int] = {}  # the same clip may be in several pairs
        for row, file, prompt in found:
            if prompt and is_file(file):
                rows.setdefault((file, prompt), row)
            else:
                reason = f"names {file.name}, which does not exist" if prompt else f"has no prompt for {file.name}"
                self.bad.append(BadRow(row, reason))
        self._files = [file for file, _ in rows]
        self._rows = list(rows.values())
        self.names = [clip_name(file) for file in self._files]
        self.prompts = [prompt for _, prompt in rows]

    def batches(self) -> list[list[int]]:
        """Return batches of files, in order."""
        rows = list(range(len(self.names)))
        return [rows[at : at + self._batch] for at in range(0, len(rows), self._batch)]

    def make(self, indices: Sequence[int], latents: Tensor | None) -> MadeClips:
        """Read files and, unless their latents are cached, encode them; unusable files join the bad rows."""
        read: dict[int, Tensor] = {}  # by place
        for place, index in enumerate(indices):
            try:
                read[place] = read_clip(self._files[index], self._encoder.settings)
            except UnreadableClipError as reason:
                self.bad.append(BadRow(self._rows[index], str(reason)))
        if not read:
            return MadeClips([], torch.empty(0), torch.empty(0))
        clips = list(read.values())
        latents = torch.stack([self._encoder.clip(clip) for clip in clips]) if latents is None else latents[list(read)]
        return MadeClips([indices[place] for place in read], latents, torch.stack(clips))


def _in_table(file: Path, videos: Path) -> tuple[list[tuple[int, Path, str]], list[BadRow]]:
    """Line, file and prompt of each clip in a CSV file, and the rows that are left out."""
    table = read_csv(file)
    paths = [name for name in PATHS if name in table.columns]
    if not paths or "prompt" not in table.columns:
        raise ValueError(
            f"Expected the columns path and prompt in {file}, but it has {', '.join(table.columns)}; rename yours."
        )
    found, bad = list[tuple[int, Path, str]](), list(table.bad)
    for number, row in table.rows:
        bad += [BadRow(number, f"has no {name}") for name in paths if not row[name]]
        found += [(number, videos / row[name], row["prompt"]) for name in paths if row[name]]
    return found, sorted(bad, key=lambda one: one.row)


def _in_folder(folder: Path) -> tuple[list[tuple[int, Path, str]], list[BadRow], tuple[str, ...]]:
    """Place, file and prompt of each video in a folder, those whose prompt cannot be read, and what is passed over."""
    content = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in content if path.suffix.lower() in VIDEOS and path.is_file()]
    if not files:
        raise ValueError(
            f"Expected videos ({', '.join(VIDEOS)}) in {folder}, but there are none; name the folder that holds them."
        )
    stems = {file.stem for file in files}
    others = [
        path.name
        for path in content
        if path not in files and not (path.stem in stems and path.suffix.lower() in BESIDE)
    ]
    found, bad = list[tuple[int, Path, str]](), list[BadRow]()
    for place, file in enumerate(files, start=1):
        try:
            found.append((place, file, _beside(file)))
        except ValueError as error:
            bad.append(BadRow(place, f"has no prompt for {file.name} that can be read ({error})"))
    more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
    notes = (f"passed over in {folder.name}: {', '.join(others[:LISTED])}{more}",) if others else ()
    return found, bad, notes


def _beside(video: Path) -> str:
    """The prompt in the text file or the manifest beside a video; empty if there is neither."""
    text, manifest = video.with_suffix(".txt"), video.with_suffix(".json")
    if text.is_file():
        return LINE_END.sub("\n", read_text(text)).strip()
    if not manifest.is_file():
        return ""
    from nrg_sampler.runs.manifest import Manifest

    stored = Manifest.read(manifest)
    return stored.recipe.prompt if stored.command == "generate" else ""  # others show several clips side by side
