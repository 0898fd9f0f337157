"""One seed after another: where the files go, what is printed, what Ctrl-C leaves behind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nrg_sampler.cli.parser import DEFAULT_FOLDER
from nrg_sampler.cli.recipe import from_arguments
from nrg_sampler.files import partial_path, slug, with_free_name, writable_file, writable_folder
from nrg_sampler.json_text import to_json
from nrg_sampler.judges.alarm import hacking_alarm
from nrg_sampler.judges.loading import load_judges
from nrg_sampler.runs.manifest import Clip, Manifest, changes, format_change
from nrg_sampler.runs.outcome import Changes
from nrg_sampler.runs.sampler import Sampler
from nrg_sampler.runs.writing import MAKERS, SUFFIXES, Make, strip_of_all, writable_files

Conclude = Callable[[Sequence[Manifest], Sequence[Path], argparse.Namespace], None]

INTERRUPTED = 130
JUDGE_LINES = {
    "reward": "reward  {}   (the guiding reward's reading of the finished clip, in its standard deviations)",
    "oracle": "oracle  {}   (measured in the pixels, 0 to 1)",
    "pixel": "pixel  {}   (the pixel judge, in its standard deviations)",
    "videoreward": "videoreward  {}   (the published judge, in its standard deviations)",
}


def run_seeds(arguments: argparse.Namespace, usual: int = 1, conclude: Conclude | None = None) -> int:
    """Make one file a seed, each written when it is finished.

    Args:
        arguments: The options of :mod:`nrg_sampler.cli.parser`, and the ``command``.
        usual: How many seeds where neither a number nor a single file is named.
        conclude: Called at the end with the manifests, the files and the options.

    Returns:
        The exit code.
    """
    recipe = from_arguments(arguments)
    usual = 1 if is_file(arguments.out) else usual
    first, count = arguments.seed or 0, arguments.num or usual
    paths = output_paths(arguments.command, arguments.out, recipe.prompt, range(first, first + count))
    if arguments.plan:
        _print_plan(Sampler(recipe), count, paired=arguments.command == "compare", as_json=arguments.json)
        return 0
    manifests: list[Manifest] = []
    videos: list[Path] = []
    try:
        sampler = Sampler(recipe, judges=load_judges(arguments.judge or (), recipe.device))
        if sampler.recipe.proposed and not arguments.json:
            print(f"weights {sampler.recipe.guidance.weights}, proposed by the reward for this prompt", flush=True)
        for seed, path in paths.items():
            manifest, written = _make(MAKERS[arguments.command], sampler, seed, path, named=is_file(arguments.out))
            manifests.append(manifest)
            videos.append(written)
            report(manifest, written, as_json=arguments.json)
        if conclude is not None:
            conclude(manifests, videos, arguments)
    except KeyboardInterrupt:
        kept = f"{len(manifests)} of {count} videos are finished and kept in {next(iter(paths.values())).parent}"
        print(f"nrg-sampler: interrupted: {kept}.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _make(make: Make, sampler: Sampler, seed: int, path: Path, named: bool) -> tuple[Manifest, Path]:
    """Make the files of a seed; in a folder they get their name when they are finished, for another run may have it.

    Returns:
        The manifest, and where the video is.
    """
    if named:
        return make(sampler, seed, path), path
    finished = partial_path(path)
    try:
        return make(sampler, seed, finished), with_free_name(finished, path)
    finally:
        for file in finished.parent.glob(f"{finished.stem}.*"):
            file.unlink()


def output_paths(command: str, out: Path | None, prompt: str, seeds: Sequence[int]) -> dict[int, Path]:
    """Choose a file for each seed and prove that it and those beside it can be written, before anything is sampled.

    In a folder nothing is overwritten: a taken name gets a number, now or, if another run takes it meanwhile, when the
    file is finished. A named file is replaced.

    Raises:
        ValueError: If a file cannot be written, or one file is named for several seeds.
    """
    out = out or DEFAULT_FOLDER
    if is_file(out):
        if len(seeds) > 1:
            raise ValueError(f"Expected a folder for {len(seeds)} videos, but got the file {out}; name a folder.")
        if command == "compare":
            writable_file(strip_of_all(out))
        return {seeds[0]: writable_files(command, out)}
    writable_folder(out)
    beside = (".mp4", *SUFFIXES[command])
    paths = {seed: free_path(out / f"{slug(prompt)}-seed{seed}.mp4", beside) for seed in seeds}
    writable_files(command, paths[seeds[-1]])  # the longest name; the others are in the same folder
    return paths


def report(manifest: Manifest, path: Path, as_json: bool) -> None:
    """Print what was written and, if there are two clips, what the guidance changed."""
    if as_json:
        change = changes(manifest.clips)
        about: dict[str, Any] = {"video": str(path), "manifest": str(path.with_suffix(".json")), "change": change}
        about["weights"] = manifest.recipe.guidance_entries()["weights"]
        about["alarm"] = hacking_alarm(change, manifest.weighted_axes())
        clips = [{**asdict(clip), "trace": len(clip.trace)} for clip in manifest.clips]
        print(to_json({**about, "seed": manifest.seed, "clips": clips}), flush=True)
        return
    seconds = sum(clip.seconds for clip in manifest.clips)
    print(f"{path}  ({seconds:.1f} s, seed {manifest.seed})", flush=True)
    for clip in manifest.clips:
        _print_looks(clip)
    change = changes(manifest.clips)
    if change:
        _print_changes(change)
        print_alarm(change, manifest)
    if len({clip.sha256 for clip in manifest.clips}) < len(manifest.clips):
        print("  The guidance had no effect: both videos are identical.", flush=True)


def _print_plan(sampler: Sampler, count: int, paired: bool, as_json: bool) -> None:
    """Print what one video costs, and all ``count`` seeds of it; ``paired`` with the unguided one beside each."""
    from nrg_sampler.runs.plan import count_memory, measure, plan

    memory = count_memory(sampler.pipe, sampler.recipe)
    found = plan(sampler.pipe, sampler.recipe, memory=memory)
    if found.fits:  # timing two steps of what does not fit would end the plan
        found = plan(sampler.pipe, sampler.recipe, measure(sampler), memory)
    weights = sampler.recipe.guidance_entries()["weights"]
    seconds = None
    if found.seconds is not None and found.unguided_seconds is not None:
        seconds = round(count * (found.seconds + (found.unguided_seconds if paired else 0.0)), 1)
    if as_json:
        videos = {"videos": count, "paired": paired, "all_seconds": seconds}
        print(to_json({**asdict(found), "fits": found.fits, "weights": weights, **videos}))
        return
    print(found)
    if paired or count > 1:
        what = f"{count} unguided and {count} guided videos" if paired else f"{count} videos"
        print(f"{what}{'' if seconds is None else f': about {seconds} s in all'}.")
    if sampler.recipe.proposed:
        print(f"Axes weighed {sampler.recipe.guidance.weights}, as the reward proposes for this prompt.")


def _print_looks(clip: Clip) -> None:
    """Say what look-ahead samples did, where some pulled the clip."""
    if not clip.lookahead:
        return
    scores = [score for row in clip.lookahead["scores"] for score in row]
    pushes = [row["push_ratio"] for row in clip.lookahead["steps"] if row["push_ratio"] is not None]
    pull = f"mean pull {sum(pushes) / len(pushes):.1%}" if pushes else "all the same, so that they pull nowhere"
    spread = f"scored {min(scores, default=0):.3g} to {max(scores, default=0):.3g}"
    print(f"  {len(scores)} look-ahead samples, {spread}: {pull}, K about {clip.lookahead['cost']:.2f}", flush=True)


def _print_changes(change: Changes) -> None:
    print("  guided - unguided")
    for judge, axes in change.items():
        print("  " + JUDGE_LINES.get(judge, f"{judge}  {{}}").format(format_change(axes)), flush=True)


def print_alarm(change: Changes, manifest: Manifest) -> None:
    """Say when the guidance pleases the reward alone; one seed can be chance, so the mean is judged as well."""
    alarm = hacking_alarm(change, manifest.weighted_axes())
    if alarm:
        print(f"  {alarm}", flush=True)


def is_file(out: Path | None) -> bool:
    """Return whether one video file is named rather than a folder."""
    return out is not None and out.suffix.lower() == ".mp4"


def free_path(path: Path, suffixes: Sequence[str]) -> Path:
    """Return ``path``, or the first numbered name beside it that nothing with one of the suffixes has."""
    name, number = path.stem, 2
    while any(path.with_suffix(suffix).exists() for suffix in suffixes):
        path = path.with_stem(f"{name}-{number}")
        number += 1
    return path
