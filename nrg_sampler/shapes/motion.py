"""Fit the motions of the world of shapes to the path of a shape: its centre and size over time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nrg_sampler.shapes.scenes import MOTIONS

SIZE_UNIT = 0.16  # a change of size by a factor e counts like a move by this many picture sides
ORBIT_TURNS = torch.linspace(0.75, 1.2, 10)
SWAY_TURNS = torch.linspace(0.9, 1.5, 13)


def fit_paths(center: Tensor, radius: Tensor) -> Tensor:
    """Fit the path of each motion.

    Args:
        center: Of the shape, in picture sides, shape ``(B, T, 2)``.
        radius: Of the shape, shape ``(B, T)``.

    Returns:
        Distance between the measured path and the best path of each motion, root mean square, ``(B, 9)``.
    """
    steps = center.shape[1]
    time = torch.linspace(-0.5, 0.5, steps)
    size = SIZE_UNIT * radius.log()
    x, y = center.unbind(-1)
    still_x, still_y, still_s = (_residual(value) for value in (x, y, size))

    def line(value: Tensor, sign: float, least: float) -> Tensor:
        slope = (value * time).sum(dim=1, keepdim=True) / (time**2).sum()
        return _residual(value - sign * (sign * slope).clamp(min=least) * time)

    errors = {
        "right": line(x, 1, 0.15) + still_y + still_s,
        "left": line(x, -1, 0.15) + still_y + still_s,
        "up": still_x + line(y, -1, 0.15) + still_s,
        "down": still_x + line(y, 1, 0.15) + still_s,
        "clockwise": _orbit(x, y, time, 1.0) + still_s,
        "counterclockwise": _orbit(x, y, time, -1.0) + still_s,
        "swaying": _sway(x, time) + still_y + still_s,
        "growing": still_x + still_y + line(size, 1, SIZE_UNIT * math.log(1.4)),
        "shrinking": still_x + still_y + line(size, -1, SIZE_UNIT * math.log(1.4)),
    }
    return torch.stack([errors[motion] for motion in MOTIONS], dim=1).clamp(min=0).sqrt()


def _residual(value: Tensor) -> Tensor:
    """Mean squared distance from the mean, ``(B,)``."""
    return (value - value.mean(dim=1, keepdim=True)).pow(2).mean(dim=1)


def _orbit(x: Tensor, y: Tensor, time: Tensor, spin: float) -> Tensor:
    """Residual of the best circle of at least 0.1 radius, over a grid of turning speeds."""
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    angle = 2 * math.pi * spin * ORBIT_TURNS[:, None] * time  # (G, T)
    cos, sin = angle.cos(), angle.sin()
    cos, sin = cos - cos.mean(dim=1, keepdim=True), sin - sin.mean(dim=1, keepdim=True)
    energy = (cos**2 + sin**2).sum(dim=1)  # (G,)
    p = (x @ cos.T + y @ sin.T) / energy  # (B, G)
    q = (y @ cos.T - x @ sin.T) / energy
    p, q = _at_least(p, q, 0.10)
    error_x = x[:, None] - p[..., None] * cos + q[..., None] * sin  # (B, G, T)
    error_y = y[:, None] - p[..., None] * sin - q[..., None] * cos
    return (error_x**2 + error_y**2).mean(dim=2).amin(dim=1)


def _sway(x: Tensor, time: Tensor) -> Tensor:
    """Residual of the best horizontal sine of at least 0.1 half-width, over a grid of periods."""
    x = x - x.mean(dim=1, keepdim=True)
    angle = 2 * math.pi * SWAY_TURNS[:, None] * time  # (G, T)
    basis = torch.stack([angle.cos(), angle.sin()], dim=-1)
    basis = basis - basis.mean(dim=1, keepdim=True)  # (G, T, 2)
    p, q = torch.einsum("gkt,bt->bgk", torch.linalg.pinv(basis), x).unbind(-1)  # (B, G)
    p, q = _at_least(p, q, 0.10)
    fitted = torch.einsum("gtk,bgk->bgt", basis, torch.stack([p, q], dim=-1))
    return ((x[:, None] - fitted) ** 2).mean(dim=2).amin(dim=1)


def _at_least(p: Tensor, q: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Lengthen the vectors ``(p, q)`` to at least ``least``: a still shape neither circles nor sways."""
    length = torch.sqrt(p**2 + q**2).clamp(min=1e-9)
    factor = length.clamp(min=least) / length
    return p * factor, q * factor
