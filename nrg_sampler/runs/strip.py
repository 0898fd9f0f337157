"""One picture of several seeds: frames without and with the reward, and below each pair what judges say changed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nrg_sampler.judges.alarm import TARGET
from nrg_sampler.runs.manifest import Manifest, changes
from nrg_sampler.runs.outcome import Changes, format_summary, summarise_changes
from nrg_sampler.video import GAP, GAP_COLOR, Frames, write_png

if TYPE_CHECKING:
    from PIL import Image

WIDTH = 840  # pixels of the frames
MARGIN = 92  # pixels left of them, for the names of the rows
FONT, LINE, LETTER = 15, 21, 6.9  # pixels: height of the letters and of a line, width of a letter
ROWS = ("unguided", "guided")


def write_compare_strip(manifests: Sequence[Manifest], videos: Sequence[Path], file: Path) -> None:
    """Write the picture of some comparisons.

    Args:
        manifests: One for each seed, of one prompt.
        videos: Their files, each with a strip of its frames as a PNG of the same name beside it.
        file: The PNG to write.
    """
    from PIL import Image

    found = [changes(manifest.clips) for manifest in manifests]
    pairs = []
    for manifest, video, change in zip(manifests, videos, found, strict=True):
        lines = _lines([change])
        with Image.open(video.with_suffix(".png")) as picture:
            pairs.append((np.asarray(picture), [f"seed {manifest.seed}:  {lines[0]}" if lines else "", *lines[1:]]))
    foot = []
    if len(manifests) > 1:
        foot = [f"mean of {len(manifests)} seeds [95 % t-interval]:", *_lines(found)]
    write_png(compare_strip(manifests[0].recipe.prompt, pairs, foot), file)


def compare_strip(title: str, pairs: Sequence[tuple[Frames, Sequence[str]]], foot: Sequence[str] = ()) -> Frames:
    """Lay pairs out one below the other.

    Args:
        title: Above all, such as the prompt.
        pairs: For each seed a picture of shape ``(H, W, 3)``, its upper half unguided frames and its lower half guided
            ones, and the lines below it.
        foot: Lines below all.

    Returns:
        One picture, shape ``(H, W, 3)``.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = [_resized(picture) for picture, _ in pairs]
    captions = [_wrapped(lines, WIDTH) for _, lines in pairs]
    heading, ending = _wrapped([title], MARGIN + WIDTH), _wrapped(foot, MARGIN + WIDTH)
    lines = len(heading) + len(ending) + sum(map(len, captions))
    height = LINE * lines + sum(picture.height for picture in shown) + 2 * GAP * (len(pairs) + 1)
    sheet = Image.new("RGB", (MARGIN + WIDTH + 2 * GAP, height), (GAP_COLOR,) * 3)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=FONT)

    def write(texts: Sequence[str], left: int, top: int) -> int:
        for place, text in enumerate(texts):
            draw.text((left, top + place * LINE), text, fill=0, font=font)
        return top + LINE * len(texts)

    top = write(heading, GAP, GAP // 2)
    for picture, texts in zip(shown, captions, strict=True):
        for place, name in enumerate(ROWS):
            write([name], GAP, top + (2 * place + 1) * picture.height // 4 - LINE // 2)
        sheet.paste(picture, (MARGIN + GAP, top))
        top = write(texts, MARGIN + GAP, top + picture.height + GAP // 4) + 2 * GAP - GAP // 4
    write(ending, GAP, top)
    return np.asarray(sheet)


def _lines(found: Sequence[Changes]) -> list[str]:
    """What judges say that did not guide; where there are none, what the reward says that did."""
    summary = summarise_changes(found)
    others = {name: axes for name, axes in summary.items() if name != TARGET}
    named = others or {f"{name} (which guided)": axes for name, axes in summary.items()}
    return [f"{name}  {format_summary(axes)}" for name, axes in named.items()]


def _resized(picture: Frames) -> Image.Image:
    from PIL import Image

    height = max(2, round(picture.shape[0] * WIDTH / picture.shape[1]))
    return Image.fromarray(picture).resize((WIDTH, height), Image.Resampling.BOX)


def _wrapped(texts: Sequence[str], width: int) -> list[str]:
    letters = int(width / LETTER)
    return [line for text in texts for line in textwrap.wrap(text, letters, max_lines=2, placeholder=" ...")]
