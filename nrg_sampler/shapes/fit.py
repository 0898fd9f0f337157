"""Fit a clean rendering to a clip: which shape, where, how large, in which colour, over which background.

The renderer's own parameters are fitted, so what is fitted can be drawn again without its faults. The shape is found
by a matte (how much of a pixel is shape, from its colour between that of the shape and that of the background behind
it) whose faint part is cut off: a halo moves neither centre nor size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes.render import (
    CHECKER_PERIOD,
    STRIPE_PERIOD,
    Drawing,
    coverage,
    pixel_grid,
    shaded,
    signed_distance,
)
from nrg_sampler.shapes.scenes import BACKGROUNDS, HEIGHT, WIDTH

AREA = (2.659, 2.560, 1.299, 1.323, 2.199)  # of each shape of circumscribed radius 1
VIVID_PIXELS = 24  # as many as a small shape has inside
LEAST_CHROMA = 0.25  # of a shape against its background: less is not seen as one
CONTRAST = {"plain": 0.0, "gradient": 0.46, "striped": 0.10, "checkered": 0.13}  # of the patterns the renderer paints
RESIDUAL = 0.03  # of a background, root mean square: as much makes two patterns look alike


@dataclass
class CleanFit:
    """Clean renderings fitted to ``B`` clips of ``T`` frames.

    Args:
        present: Whether a frame shows a shape, ``(B, T)``.
        mask: How much of each pixel is shape, ``(B, T, H, W)`` in ``[0, 1]``.
        overlap: Intersection over union of each shape's outline with the mask, mean over frames, ``(B, 5)``.
        center: Centre of the best-fitting shape, ``(B, T, 2)`` in picture sides.
        radius: Its circumscribed radius, ``(B, T)``.
        outline: How much of each pixel it covers, ``(B, T, H, W)``.
        distance: Distance of each pixel to its outline in pixels, negative inside, ``(B, T, H, W)``.
        color: Mean colour of the clip inside the mask, ``(B, T, 3)``.
        patterns: How well each background pattern fits, ``(B, 4)``, rows sum to 1.
        backdrop: The best-fitting background, ``(B, 3, H, W)``.
        rendering: The clean clip, ``(B, 3, T, H, W)``.
    """

    present: Tensor
    mask: Tensor
    overlap: Tensor
    center: Tensor
    radius: Tensor
    outline: Tensor
    distance: Tensor
    color: Tensor
    patterns: Tensor
    backdrop: Tensor
    rendering: Tensor


def fit_clean(clips: Tensor) -> CleanFit:
    """Fit clean renderings to clips ``(B, 3, T, H, W)`` in ``[0, 1]``.

    Raises:
        ValueError: If the pictures have another size than the world's.
    """
    require_world_size(clips)
    grid = pixel_grid()
    vivid, present = _vivid(clips)
    patterns, backdrop = _fit_backdrop(clips, beside(vivid), grid)
    mask = _matte(clips, vivid, backdrop) * present[..., None, None]
    center, area = _center_and_area(mask, present)
    overlap, shape = _fit_outlines(mask, center, area, grid)
    radius = (area / torch.tensor(AREA)[shape][:, None]).sqrt()
    center, radius = _refined(mask, shape, center, radius, grid)
    outline, points = coverage(_drawing(shape, center, radius), grid)
    distance = signed_distance(shape[:, None, None, None], points) * radius[..., None, None] * HEIGHT
    rendering = _rendered(clips, outline, points, backdrop)
    color = _mean_inside(clips, mask)
    return CleanFit(present, mask, overlap, center, radius, outline, distance, color, patterns, backdrop, rendering)


def require_world_size(clips: Tensor) -> None:
    """Refuse clips that are not of the size that scenes are drawn in: distances in pixels are meant at that size.

    Raises:
        ValueError: If there is another number of axes, channels or pixels.
    """
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.shape[3:] != (HEIGHT, WIDTH):
        raise ValueError(
            f"Expected clips of shape (B, 3, T, {HEIGHT}, {WIDTH}), but got {tuple(clips.shape)}; resample them first."
        )


def beside(mask: Tensor) -> Tensor:
    """Pixels at least two away from the shape, ``(B, T, H, W)``, 0 or 1."""
    return 1 - _grown((mask > 0.05).float())


def _grown(mask: Tensor) -> Tensor:
    """Each pixel's largest value within two pixels, ``(B, T, H, W)``."""
    return functional.max_pool2d(mask.flatten(0, 1)[:, None], 5, stride=1, padding=2).view_as(mask)


def _vivid(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Where a clip is colourful, ``(B, T, H, W)`` in ``[0, 1]``, and whether a frame shows a shape, ``(B, T)``."""
    chroma = clips.amax(dim=1) - clips.amin(dim=1)  # (B, T, H, W)
    quiet = chroma.flatten(2).median(dim=2).values[..., None, None]
    most = chroma.flatten(2).topk(VIVID_PIXELS, dim=2).values.mean(dim=2)[..., None, None]
    # The lit side of a shape is a little paler than the rest.
    vivid = ((chroma - quiet) / (0.80 * (most - quiet)).clamp(min=1e-3)).clamp(0, 1)
    present = most - quiet > LEAST_CHROMA
    return torch.where(vivid > 0.12, vivid, torch.zeros_like(vivid)) * present, present[..., 0, 0]


def _mean_inside(clips: Tensor, mask: Tensor) -> Tensor:
    """Mean colour of the shape's inside in each frame, ``(B, T, 3)``."""
    inside = (mask - 0.6).clamp(min=0)
    return torch.einsum("bcthw,bthw->btc", clips, inside) / inside.sum(dim=(2, 3)).clamp(min=1e-6)[..., None]


def _matte(clips: Tensor, vivid: Tensor, backdrop: Tensor) -> Tensor:
    """How much of each pixel is shape, ``(B, T, H, W)``; shares below a quarter are none, above three quarters all."""
    color = _mean_inside(clips, vivid).transpose(1, 2)[..., None, None]  # (B, 3, T, 1, 1)
    step = color - backdrop[:, :, None]
    share = ((clips - backdrop[:, :, None]) * step).sum(dim=1) / step.pow(2).sum(dim=1).clamp(min=1e-3)
    return steepened(share) * _grown((vivid > 0.05).float())


def steepened(share: Tensor) -> Tensor:
    """Cut off what is faint: ``1/4`` becomes 0 and ``3/4`` becomes 1, a half stays."""
    return (2 * share - 0.5).clamp(0, 1)


def _center_and_area(mask: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``(B, T, 2)`` and area ``(B, T)`` in picture sides; frames without a shape repeat the one before."""
    grid = pixel_grid()
    weight = mask.flatten(2).sum(dim=2)  # (B, T)
    center = torch.einsum("bthw,hwc->btc", mask, grid) / weight.clamp(min=1e-6)[..., None]
    area = weight / (HEIGHT * WIDTH)
    center[~present], area[~present] = 0.5, 0.01
    for frame in range(1, mask.shape[1]):
        gone = ~present[:, frame]
        center[gone, frame], area[gone, frame] = center[gone, frame - 1], area[gone, frame - 1]
    return center, area.clamp(min=1e-4)


def _drawing(shape: Tensor, center: Tensor, radius: Tensor) -> Drawing:
    """Outlines alone: a drawing without colours."""
    batch = len(center)
    return Drawing(
        shape=shape,
        color=center.new_zeros(*center.shape[:2], 3),
        center=center,
        radius=radius,
        background=torch.zeros(batch, dtype=torch.long),
        tone=center.new_zeros(batch, 2),
        shift=center.new_zeros(batch, 2),
    )


def _fit_outlines(mask: Tensor, center: Tensor, area: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union of each outline with the mask (mean over frames, ``(B, 5)``), and the best shape."""
    overlaps = []
    for index, unit_area in enumerate(AREA):
        shape = torch.full((len(mask),), index)
        outline, _ = coverage(_drawing(shape, center, (area / unit_area).sqrt()), grid)
        both = torch.minimum(outline, mask).sum(dim=(2, 3))
        either = torch.maximum(outline, mask).sum(dim=(2, 3))
        overlaps.append((both / either.clamp(min=1e-6)).mean(dim=1))
    overlap = torch.stack(overlaps, dim=1)
    return overlap, overlap.argmax(dim=1)


def _refined(mask: Tensor, shape: Tensor, center: Tensor, radius: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Move centre and radius of each frame to the least squared difference between outline and mask.

    One Gauss-Newton step takes the error of the centre from 0.08 to 0.04 pixels (60 rendered scenes of the validation
    split); a second one changes nothing.
    """
    outline, points = coverage(_drawing(shape, center, radius), grid)
    # The slopes of the outline over the picture tell what a move and a growth change: it is a function of
    # (pixel - centre) / radius.
    down, right = torch.gradient(outline, spacing=1 / HEIGHT, dim=(2, 3))
    slope = torch.stack([right, down], dim=-1)  # (B, T, H, W, 2)
    growth = (slope * points).sum(dim=-1, keepdim=True)
    slopes = -2 * torch.cat([slope, growth], dim=-1)  # of the steepened outline, where it is neither 0 nor 1
    covered = steepened(outline)
    edge = ((covered > 0) & (covered < 1))[..., None]
    slopes = (slopes * edge).flatten(2, 3)  # (B, T, P, 3)
    missing = (mask - covered).flatten(2)[..., None]
    damping = 1e-3 * slopes.pow(2).sum(dim=(2, 3)).clamp(min=1e-3)[..., None, None] * torch.eye(3)
    step = torch.linalg.solve(slopes.mT @ slopes + damping, slopes.mT @ missing)[..., 0]
    step = step.clamp(-1 / HEIGHT, 1 / HEIGHT)
    return center + step[..., :2], (radius + step[..., 2]).clamp(min=0.02)


def _rendered(clips: Tensor, outline: Tensor, points: Tensor, backdrop: Tensor) -> Tensor:
    """Draw the fitted shape over the fitted background, in the colour that fits its inside best, frame by frame."""
    base, slope = shaded(points)  # a surface is base + slope * colour
    inside = (outline > 0.95).float()[:, None]
    color = (((clips - base) * slope * inside).sum(dim=(3, 4), keepdim=True)) / (
        (slope.pow(2) * inside).sum(dim=(3, 4), keepdim=True).clamp(min=1e-3)
    )
    surface = base + slope * color.clamp(0, 1)
    return torch.lerp(backdrop[:, :, None].expand_as(surface), surface, outline[:, None]).clamp(0, 1)


def _fit_backdrop(clips: Tensor, seen: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Fit each background pattern to what is seen beside the shape.

    A pattern has one strength and each channel its own level, as the renderer paints them: a tint that changes from
    place to place is a fault.

    Returns:
        How well each pattern fits, ``(B, 4)``, and the best, ``(B, 3, H, W)``.
    """
    seen = seen[:, None]  # (B, 1, T, H, W)
    share = seen.sum(dim=2)
    image = ((clips * seen).sum(dim=2) / share.clamp(min=1)).flatten(2)  # (B, 3, P)
    weight = (share[:, 0] > 0).float().flatten(1)  # (B, P)
    x, y = (value.flatten() for value in grid.unbind(-1))
    one = torch.ones_like(x)
    stripe = 2 * math.pi * (x + y) / STRIPE_PERIOD
    across, along = 2 * math.pi * x / CHECKER_PERIOD, 2 * math.pi * y / CHECKER_PERIOD
    bases = {
        "plain": [one],
        "gradient": [one, y - 0.5],
        "striped": [one, stripe.sin(), stripe.cos()],
        "checkered": [one, *(a * b for a in (across.sin(), across.cos()) for b in (along.sin(), along.cos()))],
    }
    logits, painted = [], []
    for name in BACKGROUNDS:
        basis = torch.stack(bases[name], dim=1)  # (P, K)
        weighted = basis[None] * weight[..., None]  # (B, P, K)
        normal = weighted.mT @ basis + 1e-4 * torch.eye(basis.shape[1])
        fitted = torch.linalg.solve(normal, weighted.mT @ image.mean(dim=1)[..., None])  # (B, K, 1)
        grey = (basis @ fitted).mT  # (B, 1, P)
        level = ((image - grey) * weight[:, None]).sum(dim=2, keepdim=True) / weight.sum(dim=1).clamp(min=1)[
            :, None, None
        ]
        error = (image - grey - level) * weight[:, None]
        residual = (error.pow(2).sum(dim=(1, 2)) / (3 * weight.sum(dim=1)).clamp(min=1)).sqrt()
        strength = fitted[:, 1:, 0].norm(dim=1)
        doubt = ((strength - CONTRAST[name]) / (0.4 * CONTRAST[name])) ** 2 if CONTRAST[name] else 0.0
        logits.append(-((residual / RESIDUAL) ** 2) - doubt)
        painted.append(grey + level)
    fit = torch.stack(logits, dim=1)
    best = torch.stack(painted, dim=1)[torch.arange(len(fit)), fit.argmax(dim=1)]
    return fit.softmax(dim=1), best.unflatten(2, tuple(clips.shape[3:]))
