"""The oracle: measure a clip of the shapes world without a network.

A clean rendering is fitted to the clip. What was fitted tells what the clip shows (TA) and how it moves (MQ); how far
the clip is from it, to an eye, is its picture quality (VQ). The scores are continuous, so ties between two clips are
rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes.fidelity import fidelity, white_of
from nrg_sampler.shapes.fit import beside, fit_clean
from nrg_sampler.shapes.motion import SIZE_UNIT, fit_paths
from nrg_sampler.shapes.scenes import ATTRIBUTES, COLORS, HEIGHT, SIZES, WIDTH, Prompt

AXES = ("VQ", "MQ", "TA")
LEAST_FRAMES = 4  # a path has a curvature from then on
ROUNDING = 1e-3  # that pixels may leave [0, 1] by
PATH_TOLERANCE = 0.03  # picture sides
ATTRIBUTE_WEIGHTS = {"shape": 0.25, "color": 0.25, "motion": 0.30, "background": 0.20, "size": 0.10}
PICTURE_WEIGHTS = {"sharpness": 0.55, "structure": 0.20, "shape": 0.15, "backdrop": 0.10}


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
        """VQ, ``(B,)`` in ``[0, 1]``: sharp and well-formed edges, the shape's colours, a quiet background."""
        return self.visible * sum(share * self.details[name] for name, share in PICTURE_WEIGHTS.items())

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

    Raises:
        ValueError: If there is not one prompt for each clip, or the clips are not as ``measure`` wants them.
    """
    if len(prompts) != len(clips):
        raise ValueError(f"Expected one prompt for each of {len(clips)} clips, but got {len(prompts)} prompts.")
    measured = measure(clips)
    columns = [measured.visual_quality, measured.motion_quality, measured.text_alignment(prompts)]
    return torch.stack(columns, dim=1)


@torch.no_grad()
def measure(clips: Tensor) -> ClipMeasurement:
    """Measure clips.

    Args:
        clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; any number of frames from 4 on, square pictures. Those of
            another size than the world's are resampled to it first.

    Raises:
        ValueError: If they have another shape, or pixels that are not in ``[0, 1]``.
    """
    clips = _world_sized(_pixels(clips))
    fit = fit_clean(clips)
    path_error = fit_paths(fit.center, fit.radius)
    middle = fit.radius.log().mean(dim=1).exp()
    attributes = {
        "shape": (20 * fit.overlap).softmax(dim=1),
        "color": _color_fit(fit.color, fit.present),
        "motion": (-(path_error**2) / PATH_TOLERANCE**2).softmax(dim=1),
        "background": fit.patterns,
        "size": torch.stack([0.16 - middle, middle - 0.16], dim=1).div(0.01).softmax(dim=1),
    }
    travel = fit.center.diff(dim=1).norm(dim=-1).sum(dim=1) + SIZE_UNIT * fit.radius.log().diff(dim=1).abs().sum(dim=1)
    picture = fidelity(clips, fit)
    white = white_of(fit.rendering)  # a darker scene hides no flicker
    details = {
        "sharpness": picture["sharpness"],
        "structure": picture["structure"],
        "shape": torch.exp(-picture["shape_error"] / 0.3),
        "backdrop": torch.exp(-picture["backdrop_error"] / 0.2),
        "path": torch.exp(-path_error.amin(dim=1) / PATH_TOLERANCE),
        "steady_size": torch.exp(-_roughness(fit.radius.log()[..., None]) / 0.10),
        "steady_color": torch.exp(-_roughness(fit.color / white[..., 0, 0]) / 0.06),
        "steady_background": torch.exp(
            -_background_flicker(clips / white, fit.backdrop / white[..., 0], fit.mask) / 0.015
        ),
        "movement": (travel / 0.10).clamp(max=1.0),
    }
    return ClipMeasurement(attributes, details, fit.present.float().mean(dim=1))


def is_measurable(frames: int, height: int, width: int) -> bool:
    """Return whether clips of this size can be measured."""
    return frames >= LEAST_FRAMES and height == width > 0


def _pixels(clips: Tensor) -> Tensor:
    """Return clips in float32 on the CPU, or refuse them."""
    if not isinstance(clips, Tensor) or not clips.is_floating_point():
        kind = clips.dtype if isinstance(clips, Tensor) else type(clips).__name__
        raise ValueError(
            f"Expected clips as a tensor of floating-point numbers in [0, 1], but got {kind}; "
            "divide pixels of 8 bits by 255."
        )
    if clips.ndim != 5 or clips.shape[1] != 3 or not is_measurable(*clips.shape[2:]):
        raise ValueError(
            f"Expected clips of shape (B, 3, T >= {LEAST_FRAMES}, H, W) with H = W, but got {tuple(clips.shape)}; "
            "crop them to squares, or sample more frames."
        )
    if clips.is_meta:
        raise ValueError("Expected clips that hold pixels, but got a meta tensor; move or sample them to a device.")
    clips = clips.float().cpu()
    least, most = clips.flatten(1).aminmax(dim=1)
    for row, (low, high) in enumerate(zip(least.tolist(), most.tolist(), strict=True)):
        if not -ROUNDING <= low <= high <= 1 + ROUNDING:  # nor are these of NaN
            raise ValueError(
                f"Expected pixels in [0, 1], but those of clip {row} go from {low:g} to {high:g}; "
                "scale and clamp them, and leave out clips with NaN."
            )
    return clips.clamp(0, 1)


def _world_sized(clips: Tensor) -> Tensor:
    """Resample clips to the size that scenes are drawn in, as an eye sees both equally large."""
    if clips.shape[3:] == (HEIGHT, WIDTH):
        return clips
    frames = clips.transpose(1, 2).flatten(0, 1)
    frames = functional.interpolate(frames, size=(HEIGHT, WIDTH), mode="bicubic", antialias=True)
    return frames.view(-1, clips.shape[2], 3, HEIGHT, WIDTH).transpose(1, 2).clamp(0, 1)


def _color_fit(color: Tensor, present: Tensor) -> Tensor:
    """How well each named colour fits, ``(B, 8)``: distance to the colour as the light of the renderer leaves it."""
    palette = torch.tensor(list(COLORS.values()))
    lit = palette * 0.944 + (1 - palette) * 0.066
    distance = (color[:, :, None] - lit).norm(dim=-1)  # (B, T, 8)
    seen = present[..., None].float()
    fit: Tensor = (-(distance**2) / (2 * 0.09**2)).softmax(dim=-1)
    return (fit * seen + (1 - seen) / 8).mean(dim=1)


def _roughness(values: Tensor) -> Tensor:
    """Second differences over time, root mean square, ``(B,)``; values ``(B, T, K)``."""
    return values.diff(n=2, dim=1).pow(2).sum(dim=-1).mean(dim=1).sqrt()


def _background_flicker(clips: Tensor, backdrop: Tensor, mask: Tensor) -> Tensor:
    """Change of the background's mean and pattern from frame to frame, root mean square, ``(B,)``."""
    difference = functional.avg_pool3d((clips - backdrop[:, :, None]) * beside(mask)[:, None], (1, 4, 4))
    return difference.diff(dim=2).pow(2).mean(dim=(1, 2, 3, 4)).sqrt()
