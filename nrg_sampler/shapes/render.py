"""Draw scenes: batched, antialiased, softly shaded, in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nrg_sampler.shapes.scenes import BACKGROUNDS, COLORS, HEIGHT, NUM_FRAMES, SHAPES, WIDTH, Scene

STRIPE_PERIOD = 0.40  # in picture sides
CHECKER_PERIOD = 0.40
EDGE = 1.6 / 64  # width of the antialiased edge


@dataclass
class Drawing:
    """Scenes as tensors: what is drawn, where, frame by frame. Editing it makes degraded clips.

    Args:
        shape: Index into ``SHAPES``, shape ``(B,)``.
        color: RGB of the shape in each frame, shape ``(B, T, 3)``, in ``[0, 1]``.
        center: Centre of the shape in each frame, ``(x, y)`` in picture sides, shape ``(B, T, 2)``.
        radius: Circumscribed radius in each frame, shape ``(B, T)``.
        background: Index into ``BACKGROUNDS``, shape ``(B,)``.
        tone: Brightness and tint of the background, shape ``(B, 2)``, in ``[0, 1]``.
        shift: Start of the background's pattern in radians, shape ``(B, 2)``.
    """

    shape: Tensor
    color: Tensor
    center: Tensor
    radius: Tensor
    background: Tensor
    tone: Tensor
    shift: Tensor


def draw(scenes: Sequence[Scene], num_frames: int = NUM_FRAMES) -> Drawing:
    """Turn scenes into tensors, following each scene's motion over ``num_frames`` frames."""

    def column(values: list[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    motion = [scene.prompt.motion for scene in scenes]
    amount = column([scene.amount for scene in scenes])[:, None]
    turns = column([scene.turns for scene in scenes])[:, None]
    phase = column([scene.phase for scene in scenes])[:, None]
    time = torch.linspace(-0.5, 0.5, num_frames)[None]  # (1, T), the clip's middle is 0

    unit = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
    spin = {"clockwise": 1.0, "counterclockwise": -1.0}
    line = column([unit.get(name, (0, 0)) for name in motion])
    orbit = column([spin.get(name, 0.0) for name in motion])[:, None]
    sway = column([float(name == "swaying") for name in motion])[:, None]
    growth = column([{"growing": 1.0, "shrinking": -1.0}.get(name, 0.0) for name in motion])[:, None]

    angle = 2 * math.pi * turns * time * torch.where(orbit != 0, orbit, torch.ones_like(orbit)) + phase  # (B, T)
    x = line[:, :1] * amount * time + orbit.abs() * amount * angle.cos() + sway * amount * angle.sin()
    y = line[:, 1:] * amount * time + orbit.abs() * amount * angle.sin()
    center = column([scene.place for scene in scenes])[:, None] + torch.stack([x, y], dim=-1)
    growing = torch.where(growth != 0, amount, torch.ones_like(amount)) ** (growth * time)
    return Drawing(
        shape=torch.tensor([SHAPES.index(scene.prompt.shape) for scene in scenes]),
        color=column([COLORS[scene.prompt.color] for scene in scenes])[:, None].expand(-1, num_frames, -1).clone(),
        center=center,
        radius=column([scene.radius for scene in scenes])[:, None] * growing,
        background=torch.tensor([BACKGROUNDS.index(str(scene.prompt.background)) for scene in scenes]),
        tone=column([scene.tone for scene in scenes]),
        shift=column([scene.shift for scene in scenes]),
    )


def pixel_grid(height: int = HEIGHT, width: int = WIDTH, top: int = 0, left: int = 0) -> Tensor:
    """Coordinates of pixel centres in picture sides, shape ``(height, width, 2)``; ``top`` and ``left`` crop."""
    y = (torch.arange(top, top + height) + 0.5) / HEIGHT
    x = (torch.arange(left, left + width) + 0.5) / WIDTH
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)


def signed_distance(shape: Tensor, points: Tensor) -> Tensor:
    """Distance to the outline of a shape of circumscribed radius 1, negative inside.

    Args:
        shape: Index into ``SHAPES``, broadcastable to ``points[..., 0]``.
        points: Positions relative to the shape's centre, in radii, shape ``(..., 2)``.
    """
    x, y = points.unbind(-1)
    length = points.norm(dim=-1)
    distances: tuple[Callable[[], Tensor], ...] = (
        lambda: length - 0.92,
        lambda: torch.maximum(x.abs(), y.abs()) - 0.80,
        lambda: torch.maximum(x.abs() * (math.sqrt(3) / 2) - y / 2, y) - 0.50,  # points up, centred on its centroid
        lambda: _star(x, y),
        lambda: (length - 0.70).abs() - 0.25,
    )
    # Most calls draw one shape: the others' distances are not worked out.
    found = torch.zeros_like(x)
    for index in shape.unique().tolist():
        found = torch.where(shape == index, distances[index](), found)
    return found


def _star(x: Tensor, y: Tensor, inner: float = 0.45) -> Tensor:
    """A five-pointed star: fold the plane into one tenth of it, then measure against one straight edge."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)  # 0 points up
    folded = (angle - sector * (angle / sector).round()).abs()
    length = torch.sqrt(x * x + y * y + 1e-12)
    px, py = length * folded.sin(), length * folded.cos()
    tip, notch = (0.0, 1.0), (inner * math.sin(sector / 2), inner * math.cos(sector / 2))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    norm = math.hypot(*edge)
    return ((px - tip[0]) * -edge[1] + (py - tip[1]) * edge[0]) / norm


def coverage(drawing: Drawing, grid: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each pixel the shape covers, ``(B, T, H, W)`` in ``[0, 1]``, and the points it was measured at."""
    grid = grid if grid.ndim == 4 else grid[None]  # (1 or B, H, W, 2)
    radius = drawing.radius[:, :, None, None]
    points = (grid[:, None] - drawing.center[:, :, None, None]) / radius[..., None]  # (B, T, H, W, 2)
    distance = signed_distance(drawing.shape[:, None, None, None], points) * radius
    return (0.5 - distance / EDGE).clamp(0, 1), points


def shaded(points: Tensor) -> tuple[Tensor, Tensor]:
    """How light makes a surface of its colour: ``surface = base + slope * colour``.

    Args:
        points: Positions relative to the shape's centre, in radii, shape ``(B, T, H, W, 2)``.

    Returns:
        Base and slope, each ``(B, 1, T, H, W)``.
    """
    highlight = torch.exp(-((points + 0.35) ** 2).sum(dim=-1) / 0.35)[:, None]  # light falls from the top left
    return 0.22 * highlight, 0.92 - 0.14 * highlight


def background(kind: Tensor, tone: Tensor, shift: Tensor, grid: Tensor) -> Tensor:
    """Paint backgrounds, shape ``(B, 3, H, W)`` in ``[0, 1]``: low in colour, so that shapes stand out."""
    grid = grid if grid.ndim == 4 else grid[None]
    x, y = grid.unbind(-1)  # (1 or B, H, W)
    bright, tint = tone[:, 0, None, None, None], tone[:, 1, None, None, None] - 0.5
    sx, sy = shift[:, 0, None, None], shift[:, 1, None, None]
    flat = torch.zeros_like(x + sx)
    stripe = torch.sin(2 * math.pi * (x + y) / STRIPE_PERIOD + sx)
    check = torch.sin(2 * math.pi * x / CHECKER_PERIOD + sx) * torch.sin(2 * math.pi * y / CHECKER_PERIOD + sy)
    patterns = torch.stack([flat, (y - 0.5).expand_as(flat), stripe.expand_as(flat), check.expand_as(flat)], dim=1)
    level = torch.tensor([0.78, 0.46, 0.60, 0.34])[kind][:, None, None, None]
    strength = torch.tensor([0.0, 0.46, 0.10, 0.13])[kind][:, None, None, None]
    hue = torch.tensor([[0.02, 0.0, -0.03], [-0.03, 0.0, 0.04], [-0.01, 0.02, -0.02], [0.0, -0.01, 0.03]])[kind]
    pattern = patterns.gather(1, kind[:, None, None, None].expand(-1, 1, *flat.shape[1:]))  # (B, 1, H, W)
    warm = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1)
    return level + 0.12 * (bright - 0.5) + strength * pattern + hue[:, :, None, None] + 0.04 * tint * warm


def render(drawing: Drawing, grid: Tensor | None = None) -> Tensor:
    """Render a drawing.

    Args:
        drawing: What to draw.
        grid: Pixel centres, shape ``(H, W, 2)`` or one grid a clip, ``(B, H, W, 2)``; default the whole picture.

    Returns:
        Clips, shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
    """
    grid = pixel_grid() if grid is None else grid
    mask, points = coverage(drawing, grid)
    base, slope = shaded(points)
    surface = base + slope * drawing.color.permute(0, 2, 1)[..., None, None]
    behind = background(drawing.background, drawing.tone, drawing.shift, grid)[:, :, None]  # (B, 3, 1, H, W)
    return torch.lerp(behind.expand_as(surface), surface, mask[:, None]).clamp(0, 1)
