"""Faults of rendered clips, each with a severity from 0 to 1."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes import changes
from nrg_sampler.shapes.render import Drawing, draw, render
from nrg_sampler.shapes.scenes import SHAPES, Prompt, sample_prompt, sample_scene


def jitter(drawing: Drawing, severity: float) -> None:
    """Shake the path."""
    drawing.center += torch.randn_like(drawing.center) * 0.05 * severity


def freeze(drawing: Drawing, severity: float) -> None:
    """Stop for a stretch of the clip, at severity 1 for the whole clip."""
    frames = drawing.radius.shape[1]
    held = round(severity * (frames - 1))
    start = int(torch.randint(frames - held, ()))
    for values in (drawing.center, drawing.radius):
        values[:, start : start + held + 1] = values[:, start : start + 1].clone()


def teleport(drawing: Drawing, severity: float) -> None:
    """Jump once."""
    frame = int(torch.randint(2, drawing.radius.shape[1] - 2, ()))
    jump = torch.randn(2)
    drawing.center[:, frame:] += 0.35 * severity * jump / jump.norm()


def pulse(drawing: Drawing, severity: float) -> None:
    """Let the size flicker."""
    drawing.radius *= torch.exp(torch.randn_like(drawing.radius) * 0.25 * severity)


def flicker(drawing: Drawing, severity: float) -> None:
    """Let the colour flicker."""
    drawing.color += torch.randn_like(drawing.color) * 0.25 * severity


def blur(clips: Tensor, severity: float) -> Tensor:
    """Blur each frame, up to a standard deviation of 3 pixels."""
    return changes.blur(clips, 0.3 + 2.7 * severity)


def grain(clips: Tensor, severity: float) -> Tensor:
    """Add coarse noise, which survives the autoencoder."""
    shape = (*clips.shape[:3], clips.shape[3] // 4, clips.shape[4] // 4)
    noise = functional.interpolate(torch.randn(shape), size=clips.shape[2:], mode="trilinear")
    return clips + 0.3 * severity * noise


def ghost(clips: Tensor, severity: float) -> Tensor:
    """Mix in another scene, as a sampler that blends two modes does."""
    rng = random.Random(int(torch.randint(2**31, ())))
    others = render(draw([sample_scene(sample_prompt(rng), rng) for _ in clips], clips.shape[2]))
    return torch.lerp(clips, others, 0.5 * severity)


DRAWING_FAULTS: tuple[Callable[[Drawing, float], None], ...] = (jitter, freeze, teleport, pulse, flicker)
PIXEL_FAULTS: tuple[Callable[[Tensor, float], Tensor], ...] = (blur, grain, ghost)


def changed_picture(clip: Tensor, rng: random.Random) -> Tensor:
    """Change a clip ``(1, 3, T, H, W)`` as the audit does, at a random strength; the slight changes are no faults."""
    choices: tuple[Callable[[], Tensor], ...] = (
        lambda: changes.blur(clip, rng.uniform(0.3, 3.0)),
        lambda: changes.compressed(clip, rng.randrange(26, 48)),
        lambda: changes.noise(clip, rng.uniform(0.01, 0.12)),
        lambda: changes.ragged(clip, rng.uniform(0.3, 3.0)),
        lambda: changes.fringed(clip, rng.uniform(0.05, 0.6)),
        lambda: changes.haloed(clip, rng.uniform(0.03, 0.3)),
        lambda: changes.greyed(clip, rng.uniform(0.1, 0.3)),
        lambda: rng.uniform(0.8, 1.1) * clip,
        lambda: changes.saturated(clip, rng.uniform(0.8, 1.2)),
        lambda: changes.tinted(clip, rng.uniform(-0.05, 0.05)),
    )
    return rng.choice(choices)().clamp(0, 1)


def faultless_clip(prompt: Prompt, rng: random.Random) -> Tensor:
    """Render a prompt without faults, shape ``(1, 3, T, H, W)``."""
    return render(draw([sample_scene(prompt, rng)])).clamp(0, 1)


def degraded_clip(prompt: Prompt, rng: random.Random) -> Tensor:
    """Render a prompt with none, one or two faults of random severity, shape ``(1, 3, T, H, W)``.

    One clip in five differs from the prompt in one attribute or more.
    """
    torch.manual_seed(rng.randrange(2**31))
    shown = sample_prompt(rng) if rng.random() < 0.2 else prompt
    drawing = draw([sample_scene(shown, rng)])
    if rng.random() < 0.15:  # the shape changes its kind half way: two outlines blended
        other = draw([sample_scene(shown, rng)])
        other.center, other.radius, other.color = drawing.center, drawing.radius, drawing.color
        other.background, other.tone, other.shift = drawing.background, drawing.tone, drawing.shift
        other.shape = torch.randint(len(SHAPES), (1,))
        clip = torch.lerp(render(drawing), render(other), rng.uniform(0.2, 0.8))
    else:
        if rng.random() < 0.6:
            rng.choice(DRAWING_FAULTS)(drawing, rng.random())
        clip = render(drawing)
    if rng.random() < 0.6:
        clip = rng.choice(PIXEL_FAULTS)(clip, rng.random())
    return clip.clamp(0, 1)
