"""Aesthetic predictors: a few linear layers on the features of a frozen vision tower."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.rewards.named.judge import FrameJudge
from nrg_sampler.rewards.named.preprocessing import HALF, Preprocessing
from nrg_sampler.rewards.named.table import Entry


class ClipHead(nn.Module):
    """The head of the LAION predictor.

    It was trained with dropout, which does nothing here but take up the numbers by which its layers are published.

    Args:
        features: Width of the tower's output.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        layers = _linear(features)
        self.layers = nn.Sequential(*_with_dropout(layers[:-1])[:-1], layers[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Rate features ``(N, D)`` of length 1; returns ``(N, 1)``."""
        rating: Tensor = self.layers(features)
        return rating


class SiglipHead(nn.Module):
    """The head of the predictor 2.5, with one dropout more.

    Args:
        features: Width of the tower's output.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scoring_head = nn.Sequential(*_with_dropout(_linear(features))[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Rate features ``(N, D)`` of length 1; returns ``(N, 1)``."""
        rating: Tensor = self.scoring_head(features)
        return rating


def _linear(features: int) -> list[nn.Module]:
    widths = (features, 1024, 128, 64, 16, 1)
    return [nn.Linear(*pair) for pair in pairwise(widths)]


def _with_dropout(layers: list[nn.Module]) -> list[nn.Module]:
    return [part for layer in layers for part in (layer, nn.Dropout())]


class AestheticJudge(FrameJudge):
    """Rate frames by a head on the features of a vision tower.

    Args:
        entry: Its row of the table.
        model: The tower.
        head: Its ratings.
        preprocessing: What the tower wants frames to be.
    """

    features: str  # what of the tower's output the head reads

    def __init__(self, entry: Entry, model: Any, head: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__(entry, model, preprocessing)
        self.head = head.requires_grad_(False).eval()

    def forward(self, frames: Tensor) -> Tensor:
        """Rate clips ``(B, 3, T, H, W)`` in ``[0, 1]``; returns raw ratings, shape ``(B, 1)``."""
        return self.over_frames(frames, self._rate)

    def _rate(self, pixels: Tensor) -> Tensor:
        rated: Tensor = self.head(functional.normalize(getattr(self.model(pixels), self.features), dim=-1))
        return rated


class ClipAestheticJudge(AestheticJudge):
    """Rate frames as the LAION aesthetic predictor does, on a ``CLIPVisionModelWithProjection``."""

    features = "image_embeds"

    def __init__(self, entry: Entry, model: Any, head: ClipHead) -> None:
        super().__init__(entry, model, head, Preprocessing(int(model.config.image_size), entry.fit))


class SiglipAestheticJudge(AestheticJudge):
    """Rate frames as the aesthetic predictor 2.5 does, on a ``SiglipVisionModel``."""

    features = "pooler_output"

    def __init__(self, entry: Entry, model: Any, head: SiglipHead) -> None:
        super().__init__(entry, model, head, Preprocessing(int(model.config.image_size), entry.fit, HALF, HALF))
