"""How faithful a clip is to its clean rendering, as an eye sees it: colour, sharpness and structure.

Colour differences are those of FLIP (Andersson et al., 2020), which filters both pictures as an eye at a stated
distance does. Sharpness and structure compare gradients, as SSIM (Wang et al., 2004) compares contrast and structure:
a least-squares slope tells how much of the clean edges is left, a correlation how much of the clip's edges belongs
to them.
"""

from __future__ import annotations

import flip_evaluator
import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes.fit import CleanFit

PIXELS_PER_DEGREE = 17.0  # FLIP's usual 67 for a clip that is shown four times as large
NOTICED = 0.2  # FLIP below this is a colour difference of about 6, which a moving picture hides
FLIP_STRIDE = 2  # frames: a fault that an eye notices is there for longer than one
NEAR = 3.0  # pixels from the outline that belong to the shape: as far as blur and ringing reach
STEEPEST = 1.25  # of a clean edge: what is steeper is a fringe, and does not make up for what is softer elsewhere
CHROMA = 0.1  # weight of colour in edges: at this size an eye resolves colour far less than brightness


def fidelity(clips: Tensor, fit: CleanFit) -> dict[str, Tensor]:
    """Compare clips ``(B, 3, T, H, W)`` in ``[0, 1]`` with what was fitted to them.

    Returns:
        ``shape_error`` and ``backdrop_error``: noticed FLIP near the shape and beside it, root mean square, from 0 to
        0.8; ``sharpness``: slope of the clip's gradients on the clean ones near the shape, clamped to ``[0, 1]``;
        ``structure``: their correlation, clamped to ``[0, 1]``. Each ``(B,)``.
    """
    near = _near(fit)  # (B, T, H, W)
    some = slice(None, None, FLIP_STRIDE)
    noticed = (_flip(clips[:, :, some], fit.rendering[:, :, some]) - NOTICED).clamp(min=0).pow(2)
    found, wanted = _gradients(clips), _gradients(fit.rendering)  # (B, 6, T, H-2, W-2)
    zone = near[:, :, 1:-1, 1:-1]
    along, clean, own = (
        (left * right).sum(dim=1) * zone for left, right in ((found, wanted), (wanted, wanted), (found, found))
    )

    def total(product: Tensor) -> Tensor:
        return product.sum(dim=(1, 2, 3))

    return {
        "shape_error": _mean(noticed, near[:, some]).sqrt(),
        "backdrop_error": _mean(noticed, 1 - near[:, some]).sqrt(),
        "sharpness": (total(torch.minimum(along, STEEPEST * clean)) / total(clean).clamp(min=1e-9)).clamp(0, 1),
        "structure": (total(along) / (total(clean) * total(own)).sqrt().clamp(min=1e-9)).clamp(0, 1),
    }


def _near(fit: CleanFit) -> Tensor:
    """Pixels of the shape and around it, also where the clip's own reaches farther than the clean one, 0 or 1."""
    close = ((fit.distance < NEAR) | (fit.mask > 0.1)).float()
    return functional.max_pool2d(close.flatten(0, 1)[:, None], 3, stride=1, padding=1).view_as(close)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(dim=(1, 2, 3)) / where.sum(dim=(1, 2, 3)).clamp(min=1)


def _flip(clips: Tensor, clean: Tensor) -> Tensor:
    """FLIP of each pixel, ``(B, T, H, W)`` in ``[0, 1]``.

    Both are brought to the same white first, as an eye adapts to a picture: else a darker scene would hide faults.
    """
    frames, wanted = (
        (value / white_of(clean)).clamp(0, 1).permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous().numpy()
        for value in (clips, clean)
    )
    maps = [
        flip_evaluator.evaluate(
            reference,
            frame,
            "LDR",
            applyMagma=False,
            computeMeanError=False,
            parameters={"ppd": PIXELS_PER_DEGREE},
        )[0]
        for reference, frame in zip(wanted, frames, strict=True)
    ]
    if not maps:
        return clips[:, 0]
    stacked = torch.stack([torch.from_numpy(one[..., 0]) for one in maps])
    return stacked.view(len(clips), -1, *stacked.shape[1:])


def white_of(clean: Tensor) -> Tensor:
    """Return the brightest value of clean clips, ``(B, 1, 1, 1, 1)``."""
    return clean.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1e-3)


def _gradients(clips: Tensor) -> Tensor:
    """Scharr gradients of brightness and two opponent colours along x and y, shape ``(B, 6, T, H-2, W-2)``."""
    # The mean of the channels, not luminance: taking the colour from pale pixels would sharpen the latter.
    brightness = clips.mean(dim=1)
    red, green, blue = clips.unbind(dim=1)
    channels = torch.stack([brightness, CHROMA * (red - green) / 2, CHROMA * (blue - (red + green) / 2) / 2], dim=1)
    along_x = (channels[..., 2:] - channels[..., :-2]) / 2
    along_y = (channels[..., 2:, :] - channels[..., :-2, :]) / 2
    along_x = (3 * along_x[..., :-2, :] + 10 * along_x[..., 1:-1, :] + 3 * along_x[..., 2:, :]) / 16
    along_y = (3 * along_y[..., :-2] + 10 * along_y[..., 1:-1] + 3 * along_y[..., 2:]) / 16
    return torch.cat([along_x, along_y], dim=1)
