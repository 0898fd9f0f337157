"""The oracle: measure a clip of the shapes world without a network.

Shapes are saturated and backgrounds are not, so their chroma separates them. Everything else is a fit:
five outlines to the mask, nine paths to its centre and size, four patterns to what lies behind, and last a clean
rendering of the fitted attributes to the clip itself. The scores are continuous, so ties between two clips are rare.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes.motion import SIZE_UNIT, fit_paths
from nrg_sampler.shapes.render import CHECKER_PERIOD, STRIPE_PERIOD, Drawing, coverage, pixel_grid
from nrg_sampler.shapes.scenes import ATTRIBUTES, BACKGROUNDS, COLORS, SIZES, Prompt

AXES = ("VQ", "MQ", "TA")
AREA = (2.659, 2.560, 1.299, 1.323, 2.199)  # of each shape of circumscribed radius 1
PATH_TOLERANCE = 0.03  # picture sides
ATTRIBUTE_WEIGHTS = {"shape": 0.25, "color": 0.25, "motion": 0.30, "background": 0.20, "size": 0.10}


@dataclass
class ClipMeasurement:
    """Measurements of ``B`` clips.

    Args:
        attributes: For each attribute (and ``size``) how well each value fits, ``(B, values)``, rows sum to 1.
        details: Single measurements, each ``(B,)`` in ``[0, 1]``, 1 is best: what VQ and MQ are made of.
        visible: Share of frames in which a shape is visible, ``(B,)``.
    """

    attributes: dict[str, Tensor]
    details: dict[str, Tensor]
    visible: Tensor

    def read(self) -> list[Prompt]:
        """Name the best-fitting attributes of each clip."""
        best = {name: table.argmax(dim=1).tolist() for name, table in self.attributes.items() if name != "size"}
        return [
            Prompt(**{name: ATTRIBUTES[name][index] for name, index in zip(best, row, strict=True)})
            for row in zip(*best.values(), strict=True)
        ]

    @property
    def visual_quality(self) -> Tensor:
        """VQ, ``(B,)`` in ``[0, 1]``: clean outline, sharp edge, quiet surface, quiet background."""
        details = self.details
        return self.visible * (
            0.35 * details["outline"]
            + 0.25 * details["sharpness"]
            + 0.2 * details["surface"]
            + 0.2 * details["backdrop"]
        )

    @property
    def motion_quality(self) -> Tensor:
        """MQ, ``(B,)`` in ``[0, 1]``: a smooth path, steady colour, size and background, and movement at all."""
        details = self.details
        steady = (
            0.4 * details["path"]
            + 0.2 * details["steady_size"]
            + 0.2 * details["steady_color"]
            + 0.2 * details["steady_background"]
        )
        return self.visible * details["movement"] * steady

    def text_alignment(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return TA, ``(B,)`` in ``[0, 1]``: the mean fit of the attributes that each prompt names."""
        scores = []
        for row, prompt in enumerate(prompts):
            total = weight = 0.0
            for name, share in ATTRIBUTE_WEIGHTS.items():
                value = getattr(prompt, name)
                if value is not None:
                    options = tuple(SIZES) if name == "size" else ATTRIBUTES[name]
                    total += share * self.attributes[name][row, options.index(value)].item()
                    weight += share
            scores.append(total / weight)
        return self.visible * torch.tensor(scores)


def grade(clips: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Score clips on the three axes.

    Args:
        clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
        prompts: One for each clip.

    Returns:
        VQ, MQ and TA, shape ``(B, 3)``, each in ``[0, 1]``, 1 is best.
    """
    if len(prompts) != len(clips):
        raise ValueError(f"Expected one prompt for each of {len(clips)} clips, but got {len(prompts)} prompts.")
    measured = measure(clips)
    columns = [measured.visual_quality, measured.motion_quality, measured.text_alignment(prompts)]
    return torch.stack(columns, dim=1)


@torch.no_grad()
def measure(clips: Tensor) -> ClipMeasurement:
    """Measure clips of shape ``(B, 3, T, H, W)`` in ``[0, 1]``; any number of frames from 4 on, square pictures."""
    if clips.ndim != 5 or clips.shape[1] != 3 or clips.shape[2] < 4:
        raise ValueError(f"Expected clips of shape (B, 3, T >= 4, H, W), but got {tuple(clips.shape)}.")
    clips = clips.float().cpu()
    mask, present = _mask(clips)
    center, area = _center_and_area(mask, present)
    grid = pixel_grid(*clips.shape[3:])

    overlap, outlines = _fit_outlines(mask, center, area, grid)  # (B, 5), (B, 5, T, H, W)
    shape = overlap.argmax(dim=1)
    radius = (area / torch.tensor(AREA)[shape][:, None]).sqrt()
    outline = outlines[torch.arange(len(clips)), shape]  # (B, T, H, W)
    path_error = fit_paths(center, radius)
    color = _surface_color(clips, mask)
    backdrop_error, patterns, backdrop = _fit_backdrop(clips, mask, grid)
    middle = radius.log().mean(dim=1).exp()

    attributes = {
        "shape": (20 * overlap).softmax(dim=1),
        "color": _color_fit(color, present),
        "motion": (-(path_error**2) / PATH_TOLERANCE**2).softmax(dim=1),
        "background": patterns,
        "size": torch.stack([0.16 - middle, middle - 0.16], dim=1).div(0.01).softmax(dim=1),
    }
    travel = center.diff(dim=1).norm(dim=-1).sum(dim=1) + SIZE_UNIT * radius.log().diff(dim=1).abs().sum(dim=1)
    details = {
        "outline": overlap.amax(dim=1),
        "sharpness": _sharpness(mask, outline),
        "surface": torch.exp(-_surface_error(clips, outline, center, radius, color, grid) / 0.10),
        "backdrop": torch.exp(-backdrop_error / 0.03),
        "path": torch.exp(-path_error.amin(dim=1) / PATH_TOLERANCE),
        "steady_size": torch.exp(-_roughness(radius.log()[..., None]) / 0.10),
        "steady_color": torch.exp(-_roughness(color) / 0.06),
        "steady_background": torch.exp(-_background_flicker(clips, mask, backdrop) / 0.015),
        "movement": (travel / 0.10).clamp(max=1.0),
    }
    return ClipMeasurement(attributes, details, present.float().mean(dim=1))


def _mask(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Soft mask of the shape ``(B, T, H, W)`` and whether a frame shows one ``(B, T)``, from the colourfulness."""
    chroma = clips.amax(dim=1) - clips.amin(dim=1)  # (B, T, H, W)
    quiet = chroma.flatten(2).median(dim=2).values[..., None, None]
    vivid = chroma.flatten(2).topk(24, dim=2).values.mean(dim=2)[..., None, None]
    # Edge pixels mix shape and background in proportion; the lit side of a shape is a little paler than the rest.
    mask = ((chroma - quiet) / (0.80 * (vivid - quiet)).clamp(min=1e-3)).clamp(0, 1)
    present = vivid - quiet > 0.25
    return torch.where(mask > 0.12, mask, torch.zeros_like(mask)) * present, present[..., 0, 0]


def _center_and_area(mask: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Centre ``(B, T, 2)`` and area ``(B, T)`` in picture sides; frames without a shape repeat the one before."""
    grid = pixel_grid(*mask.shape[2:])
    weight = mask.flatten(2).sum(dim=2)  # (B, T)
    center = torch.einsum("bthw,hwc->btc", mask, grid) / weight.clamp(min=1e-6)[..., None]
    area = weight / mask[0, 0].numel()
    center[~present], area[~present] = 0.5, 0.01
    for frame in range(1, mask.shape[1]):
        gone = ~present[:, frame]
        center[gone, frame], area[gone, frame] = center[gone, frame - 1], area[gone, frame - 1]
    return center, area.clamp(min=1e-4)


def _fit_outlines(mask: Tensor, center: Tensor, area: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap (intersection over union, mean over frames) of each shape's outline with the mask, and the outlines."""
    batch = len(mask)
    outlines = []
    for index, unit_area in enumerate(AREA):
        template = Drawing(
            shape=torch.full((batch,), index),
            color=center.new_zeros(*center.shape[:2], 3),
            center=center,
            radius=(area / unit_area).sqrt(),
            background=torch.zeros(batch, dtype=torch.long),
            tone=center.new_zeros(batch, 2),
            shift=center.new_zeros(batch, 2),
        )
        outlines.append(coverage(template, grid)[0])
    stacked = torch.stack(outlines, dim=1)  # (B, 5, T, H, W)
    both = torch.minimum(stacked, mask[:, None]).sum(dim=(3, 4))
    either = torch.maximum(stacked, mask[:, None]).sum(dim=(3, 4))
    return (both / either.clamp(min=1e-6)).mean(dim=2), stacked


def _surface_color(clips: Tensor, mask: Tensor) -> Tensor:
    """Mean colour of the shape's inside in each frame, ``(B, T, 3)``."""
    inside = (mask - 0.6).clamp(min=0)
    return torch.einsum("bcthw,bthw->btc", clips, inside) / inside.sum(dim=(2, 3)).clamp(min=1e-6)[..., None]


def _color_fit(color: Tensor, present: Tensor) -> Tensor:
    """How well each named colour fits, ``(B, 8)``: distance to the colour as the light of the renderer leaves it."""
    palette = torch.tensor(list(COLORS.values()))
    lit = palette * 0.944 + (1 - palette) * 0.066
    distance = (color[:, :, None] - lit).norm(dim=-1)  # (B, T, 8)
    seen = present[..., None].float()
    fit: Tensor = (-(distance**2) / (2 * 0.09**2)).softmax(dim=-1)
    return (fit * seen + (1 - seen) / 8).mean(dim=1)


def _fit_backdrop(clips: Tensor, mask: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit each background pattern to what is seen beside the shape.

    Returns:
        Residual of the best pattern (root mean square over pixels and frames) ``(B,)``; how well each pattern fits
        ``(B, 4)``; the background itself, averaged over time, ``(B, 3, H, W)``.
    """
    seen = _beside(mask)[:, None]  # (B, 1, T, H, W)
    share = seen.sum(dim=2)  # (B, 1, H, W)
    image = (clips * seen).sum(dim=2) / share.clamp(min=1)
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
    expected = {"plain": 0.0, "gradient": 0.46, "striped": 0.10, "checkered": 0.13}
    logits, residuals = [], []
    for name in BACKGROUNDS:
        basis = torch.stack(bases[name], dim=1)  # (P, K)
        weighted = basis[None] * weight[..., None]  # (B, P, K)
        normal = weighted.mT @ basis + 1e-4 * torch.eye(basis.shape[1])
        fitted = torch.linalg.solve(normal, weighted.mT @ image.flatten(2).mT)  # (B, K, 3)
        error = (image.flatten(2) - (basis @ fitted).mT) * weight[:, None]
        residual = (error.pow(2).sum(dim=(1, 2)) / (3 * weight.sum(dim=1)).clamp(min=1)).sqrt()
        strength = fitted[:, 1:].mean(dim=2).norm(dim=1)
        doubt = ((strength - expected[name]) / (0.4 * expected[name])) ** 2 if expected[name] else 0.0
        logits.append(-((residual / 0.03) ** 2) - doubt)
        residuals.append(residual)
    fit = torch.stack(logits, dim=1)
    best = torch.stack(residuals, dim=1).gather(1, fit.argmax(dim=1, keepdim=True))[:, 0]
    grain = (
        ((clips - image[:, :, None]) * seen).pow(2).sum(dim=(1, 2, 3, 4))
        / (3 * seen.sum(dim=(1, 2, 3, 4))).clamp(min=1)
    ).sqrt()
    return torch.sqrt(best**2 + grain**2), fit.softmax(dim=1), image


def _beside(mask: Tensor) -> Tensor:
    """Pixels at least two away from the shape, ``(B, T, H, W)``, 0 or 1."""
    near = functional.max_pool2d((mask > 0.05).float().flatten(0, 1)[:, None], 5, stride=1, padding=2)
    return 1 - near.view_as(mask)


def _sharpness(mask: Tensor, outline: Tensor) -> Tensor:
    """How narrow the shape's edge is: half-covered pixels of the clean outline over those of the clip, at most 1."""
    clean = (outline * (1 - outline)).sum(dim=(1, 2, 3))
    measured = (mask * (1 - mask)).sum(dim=(1, 2, 3))
    return ((clean + 1) / (measured + 1)).clamp(max=1.0)


def _surface_error(
    clips: Tensor, outline: Tensor, center: Tensor, radius: Tensor, color: Tensor, grid: Tensor
) -> Tensor:
    """Difference between the shape's inside and its clean rendering, root mean square, ``(B,)``."""
    points = (grid[None, None] - center[:, :, None, None]) / radius[..., None, None, None]
    light = torch.exp(-((points + 0.35) ** 2).sum(dim=-1) / 0.35)[:, None]  # (B, 1, T, H, W)
    inside = (outline > 0.95).float()[:, None]
    count = inside.sum(dim=(3, 4), keepdim=True).clamp(min=1)
    seen = color.permute(0, 2, 1)[..., None, None]  # (B, 3, T, 1, 1)
    glow = 0.08 * seen + 0.22 * (1 - seen)
    light = light - (light * inside).sum(dim=(3, 4), keepdim=True) / count
    error = (clips - seen - glow * light) * inside
    return (error.pow(2).sum(dim=(1, 2, 3, 4)) / (3 * inside.sum(dim=(1, 2, 3, 4))).clamp(min=1)).sqrt()


def _roughness(values: Tensor) -> Tensor:
    """Second differences over time, root mean square, ``(B,)``; values ``(B, T, K)``."""
    return values.diff(n=2, dim=1).pow(2).sum(dim=-1).mean(dim=1).sqrt()


def _background_flicker(clips: Tensor, mask: Tensor, backdrop: Tensor) -> Tensor:
    """Change of the background's mean and pattern from frame to frame, root mean square, ``(B,)``."""
    seen = _beside(mask)[:, None]
    difference = functional.avg_pool3d((clips - backdrop[:, :, None]) * seen, (1, 4, 4))
    return difference.diff(dim=2).pow(2).mean(dim=(1, 2, 3, 4)).sqrt()
