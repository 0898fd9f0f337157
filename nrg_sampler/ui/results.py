"""From sampled clips to the files of a result, and back to Python that makes them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.ui.sampling import Sampled
from nrg_sampler.video import Frames, enlarge, side_by_side, write_mp4, write_png

DIFFERENCE_GAIN = 3  # so that small changes are seen
PAIR = "compare"
SINGLE = "guided"


def difference(first: Frames, second: Frames) -> Frames:
    """Return three times the distance of two videos of shape ``(T, H, W, 3)``, pixel by pixel; black is equal."""
    distance = np.abs(first.astype(np.int16) - second.astype(np.int16)) * DIFFERENCE_GAIN
    pixels: Frames = distance.clip(0, 255).astype(np.uint8)
    return pixels


def write_clip(folder: Path, sampled: Sampled, name: str) -> Path:
    """Write ``NAME.mp4`` and a still ``NAME.png``; return the video."""
    path = folder / f"{name}.mp4"
    big = enlarge(sampled.frames)
    write_png(big[len(big) // 2], path.with_suffix(".png"))
    write_mp4(big, path, sampled.sampler.fps)
    return path


def write_single(folder: Path, sampled: Sampled, name: str = SINGLE) -> Manifest:
    """Write ``NAME.mp4``, ``NAME.png`` and ``NAME.json``."""
    manifest = sampled.manifest("generate")
    manifest.write(write_clip(folder, sampled, name).with_suffix(".json"))
    return manifest


def write_pair(folder: Path, unguided: Sampled, guided: Sampled) -> Manifest:
    """Write what belongs to both clips: ``guided``, ``difference``, and ``compare.mp4`` with its manifest."""
    write_clip(folder, guided, SINGLE)
    fps = guided.sampler.fps
    write_mp4(enlarge(difference(unguided.frames, guided.frames)), folder / "difference.mp4", fps)
    manifest = guided.manifest("compare", before=[unguided.clip])
    path = folder / f"{PAIR}.mp4"
    write_mp4(side_by_side([enlarge(unguided.frames), enlarge(guided.frames)]), path, fps)
    manifest.write(path.with_suffix(".json"))
    return manifest


def snippet(manifest: Manifest) -> str:
    """Return a Python program that makes the guided clip of a manifest again."""
    recipe = manifest.recipe
    load = [repr(recipe.model)]
    if recipe.reward is not None:
        load.append(f"reward_model={recipe.reward!r}")
    if recipe.dtype != "float32":
        load.append(f"dtype=torch.{recipe.dtype}")
    move = "" if recipe.device == "cpu" else f".to({recipe.device!r})"
    imports = ["from nrg_sampler import NRGFlowPipeline, RewardGuidance"]
    scheduler = []
    if recipe.scheduler is not None:
        imports.append("from nrg_sampler.schedulers import make_scheduler")
        scheduler = [f"pipe.scheduler = make_scheduler({recipe.scheduler!r}, pipe.scheduler)"]
    sampling = [f"    {name}={value!r}," for name, value in recipe.sampling.items()]
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "",
        *imports,
        "from nrg_sampler.video import enlarge, to_uint8, write_mp4",
        "",
        f"pipe = NRGFlowPipeline.from_pretrained({', '.join(load)}){move}",
        *scheduler,
        "video = pipe(",
        f"    {recipe.prompt!r},",
        f"    reward_guidance=RewardGuidance({_changed(recipe.guidance_entries())}),",
        f"    generator=torch.Generator().manual_seed({manifest.seed}),",
        *sampling,
        ").frames[0]",
        f'write_mp4(enlarge(to_uint8(video)), Path("guided.mp4"), fps={recipe.fps:g})',
    ]
    return "\n".join(lines) + "\n"


def _changed(guidance: Mapping[str, Any]) -> str:
    """Spell the settings that differ from the defaults as keyword arguments."""
    usual = {item.name: item.default for item in fields(RewardGuidance)}
    changed = {name: value for name, value in guidance.items() if value != usual.get(name)}
    return ", ".join(f"{name}={value!r}" for name, value in changed.items())
