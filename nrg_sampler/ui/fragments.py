"""Pieces of the page as HTML. Whatever a visitor wrote is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from nrg_sampler.runs.manifest import Manifest, changes, format_change
from nrg_sampler.runs.plan import Plan
from nrg_sampler.video import Frames

FILE_ROUTE = "gradio_api/file="  # relative, so that it works below a proxy's path too
JUDGE_CAPTIONS = {
    "oracle": "Measured in the pixels by the oracle of the shapes world, 0 to 1.",
    "reward": "Read by the guiding reward itself, its target: no evidence that the video is better.",
}


def file_url(path: Path) -> str:
    """Return where the page finds a file."""
    return FILE_ROUTE + quote(str(path))


def picture_url(picture: Frames) -> str:
    """Return a picture of shape ``(H, W, 3)`` as a URL that holds it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def player(title: str, video: Path | None = None, picture: Frames | None = None, hint: str = "") -> str:
    """Return a titled square with a video, a picture of it in the making, or a hint."""
    if video is not None:
        source, label = file_url(video), f"{escape(title)} video"
        inside = f'<video muted playsinline preload="auto" src="{source}" aria-label="{label}"></video>'
    elif picture is not None:
        inside = f'<img src="{picture_url(picture)}" alt="{escape(title)}, a preview">'
    else:
        inside = f"<span>{escape(hint)}</span>"
    return f'<figure class="nrg-player"><figcaption>{escape(title)}</figcaption><div>{inside}</div></figure>'


def status(text: str, share: float = 0.0, kind: str = "") -> str:
    """Return the line over the results, with a bar that is filled to ``share``.

    Args:
        text: One short sentence.
        share: In [0, 1].
        kind: ``"error"`` for a red one, ``"busy"`` while something runs.
    """
    return (
        f'<div class="nrg-status {kind}" role="status" aria-live="polite"><p>{escape(text)}</p>'
        f'<div class="bar"><i style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></div></div>'
    )


def verdict(manifest: Manifest | None) -> str:
    """Say what the guidance changed, by whom it was judged, and by how much the numbers count."""
    if manifest is None:
        return '<div class="nrg-verdict"><p class="big">&nbsp;</p><p>&nbsp;</p></div>'
    change = changes(manifest.clips)
    if len({clip.sha256 for clip in manifest.clips}) == 1:
        lines = ["<p class='big'>No effect</p>", "<p>Both videos are identical.</p>"]
    elif "oracle" in change:
        lines = [_big(change["oracle"]), f"<p>{_from_to(manifest, 'oracle')} {JUDGE_CAPTIONS['oracle']}</p>"]
    elif "reward" in change:
        lines = [_big(change["reward"]), f"<p>{JUDGE_CAPTIONS['reward']}</p>"]
    else:
        lines = ["<p class='big'>Not judged</p>", "<p>No judge can read this prompt or model.</p>"]
    unguided = [row for row in manifest.clips[-1].trace if row.get("finite") is False]
    if unguided:
        lines.append(f"<p>{len(unguided)} steps were left unguided: their gradient was not finite.</p>")
    return f'<div class="nrg-verdict">{"".join(lines)}</div>'


def plan_line(plan: Plan | None, clips: int = 2) -> str:
    """Say before a run what it costs.

    Args:
        plan: Of one video; ``None`` while the model is not loaded.
        clips: 2 for a pair, of which one is unguided; else the number of guided ones.
    """
    if plan is None:
        return '<p class="nrg-plan">The model loads with the first run.</p>'
    count = 2 * plan.evaluations if clips == 2 else clips * plan.evaluations
    reward = plan.reward_evaluations * (1 if clips == 2 else clips)
    parts = [f"{count} + {reward:.0f} network evaluations"]
    if plan.seconds is not None and plan.unguided_seconds is not None and plan.memory_mb is not None:
        seconds = plan.seconds + plan.unguided_seconds if clips == 2 else clips * plan.seconds
        parts += [f"about {duration(seconds)}", f"{plan.memory_mb / 1024:.1f} GB"]
    about = "Of the video model + of the reward, in evaluations of the whole transformer; time and memory as seen here"
    return f'<p class="nrg-plan" title="{about}">{" · ".join(parts)}</p>'


def message(text: str, kind: str = "error") -> str:
    """Return a line in place of the plan."""
    return f'<p class="nrg-plan {kind}">{escape(text)}</p>'


def downloads(files: Mapping[str, Path]) -> str:
    """Return links to files, by what they are called on the page."""
    links = [f'<a href="{file_url(path)}" download="{path.name}">{escape(name)}</a>' for name, path in files.items()]
    return f'<div class="nrg-files">{"".join(links)}</div>'


def card(index: int, video: Path, title: str, note: str, picked: bool = False) -> str:
    """Return a clip that can be clicked; the page hears its ``index``."""
    pressed = "true" if picked else "false"
    source, poster = file_url(video), file_url(video.with_suffix(".png"))
    return (
        f'<button class="nrg-card" data-index="{index}" aria-pressed="{pressed}">'
        f'<video muted loop autoplay playsinline preload="auto" src="{source}" poster="{poster}"></video>'
        f"<b>{escape(title)}</b><span>{escape(note)}</span></button>"
    )


def markable(card: str, index: int, mark: float) -> str:
    """Return a card with two buttons under it: more like this, less like this; the page hears which was pressed.

    Args:
        card: Of :func:`card`.
        index: Its number.
        mark: Above 0 if more is wanted, below 0 if less.
    """
    buttons = [
        f'<button class="nrg-mark" data-index="{index}" data-mark="{sign}" '
        f'aria-pressed="{"true" if sign * mark > 0 else "false"}">{text} like this</button>'
        for sign, text in ((1, "More"), (-1, "Less"))
    ]
    return f'<div class="nrg-choice">{card}<div class="nrg-marks">{"".join(buttons)}</div></div>'


def empty_card(text: str = "") -> str:
    """Return the place of a clip that is not there yet."""
    return f'<div class="nrg-card empty"><div></div><b>{escape(text)}</b><span>&nbsp;</span></div>'


def rows(lines: Sequence[Sequence[str]]) -> str:
    """Lay out cards in centred rows, as in a triangle."""
    return "".join(f'<div class="nrg-row">{"".join(line)}</div>' for line in lines)


def gallery(cards: Sequence[str], hint: str = "") -> str:
    """Lay out cards one after the other, or say ``hint`` if there are none."""
    inside = "".join(cards) or f'<p class="hint">{escape(hint)}</p>'
    return f'<div class="nrg-gallery">{inside}</div>'


def duration(seconds: float) -> str:
    """Return ``"14 s"`` or ``"2 min"``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _big(change: Mapping[str, float]) -> str:
    return f"<p class='big'>{escape(format_change(change))}</p>"


def _from_to(manifest: Manifest, judge: str) -> str:
    def reading(clip: int) -> str:
        return " / ".join(f"{value:.2f}" for value in manifest.clips[clip].scores[judge].values())

    return f"{reading(0)} unguided, {reading(-1)} guided."
