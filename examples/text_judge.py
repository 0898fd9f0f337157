"""A judge of frames that reads the prompt: are the colour and the shape that it names seen? It guides by its place.

nrg-sampler compare "a red circle moving right" --model shapes --reward module:examples/text_judge.py:TextJudge
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from nrg_sampler.shapes.render import pixel_grid, signed_distance
from nrg_sampler.shapes.scenes import COLORS, SHAPES

AREAS = (2.66, 2.56, 1.30, 1.32, 2.20)  # of each shape of circumscribed radius 1
SPREAD = 0.12  # how far a pixel may be from a colour, in RGB
COLORFUL, SOFTNESS = 0.30, 0.03  # largest minus smallest channel from which a pixel is of the shape, and how sharply
EDGE = 0.10  # radii; the softness of a template's outline
SHARPNESS = 20.0  # of the choice between templates by their overlap
FLOOR = 0.05  # what is not seen at all still has a gradient


class TextJudge(nn.Module):
    axes = ("TA",)
    mean, std = (-0.73,), (0.46,)  # over unguided clips of 24 validation prompts of the bundled world
    recommended_scale = 100.0  # there a push of about 5 %

    def __init__(self):
        super().__init__()
        self.register_buffer("palette", 0.94 * torch.tensor(list(COLORS.values())) + 0.03)  # as light leaves it

    def forward(self, frames, prompts):
        words = [prompt.lower().split() for prompt in prompts]
        seen = self.colors(frames)  # (B, 8, T, H, W)
        mask = seen.sum(dim=1)  # (B, T, H, W)
        by_color = seen.sum(dim=(2, 3, 4)) / (mask.sum(dim=(1, 2, 3))[:, None] + 1)  # (B, 8), shares
        by_shape = self.overlaps(mask).mul(SHARPNESS).softmax(dim=2).mean(dim=1)  # (B, 5)
        scores = torch.log(self.named(by_color, words, COLORS) + FLOOR)
        return (scores + torch.log(self.named(by_shape, words, SHAPES) + FLOOR))[:, None]  # (B, 1)

    def colors(self, frames):
        """How much each pixel is of each colour, the rest being background."""
        distance = (frames[:, None] - self.palette[None, :, :, None, None, None]).square().sum(dim=2)
        colorful = torch.sigmoid((frames.amax(dim=1) - frames.amin(dim=1) - COLORFUL) / SOFTNESS)  # (B, T, H, W)
        return colorful[:, None] * (-distance / (2 * SPREAD**2)).softmax(dim=1)

    def overlaps(self, mask):
        """How like the mask each shape is, put where it is and as large as it is: cosines ``(B, T, 5)``."""
        height, width = mask.shape[-2:]
        grid = pixel_grid(height, width).to(mask) * (64 / height)  # (H, W, 2), in picture sides
        total = mask.sum(dim=(2, 3)) + 1e-3
        center = (mask[..., None] * grid).sum(dim=(2, 3)) / total[..., None]  # (B, T, 2)
        found = []
        for index, area in enumerate(AREAS):
            radius = (total / (height * width) / area).sqrt()[:, :, None, None, None]
            points = (grid - center[:, :, None, None]) / radius
            distance = signed_distance(torch.tensor(index, device=mask.device), points)
            template = torch.sigmoid(-distance / EDGE)
            found.append(functional.cosine_similarity(mask.flatten(2), template.flatten(2), dim=2))
        return torch.stack(found, dim=-1)

    def named(self, shares, words, names):
        """The share of what each prompt names; 1 where it names none."""
        rows = []
        for row, spoken in zip(shares, words, strict=True):
            chosen = [index for index, name in enumerate(names) if name in spoken]
            rows.append(row[chosen].sum() if chosen else torch.ones_like(row[0]))
        return torch.stack(rows)
