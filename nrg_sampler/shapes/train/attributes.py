"""Classify the attributes of a clip: an auxiliary loss of training, which gives features the content of prompts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.shapes.train.train_text import CHOICES


class AttributeClassifier(nn.Module):
    """Predict shape, colour, motion, background and size from a model's features of a clip.

    Whether a clip fits its prompt is a weak signal as long as the features do not represent what the clip shows. With
    this loss they do within minutes.

    Args:
        dim: Width of the features.
    """

    def __init__(self, dim: int) -> None:
        """Build one linear layer an attribute."""
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(values)) for values in CHOICES.values())

    def forward(self, features: Tensor, shown: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Predict the attributes of clips.

        Args:
            features: Shape ``(B, N, dim)``; their mean over ``N`` is classified.
            shown: The true attribute indices, ``(B, 5)``.

        Returns:
            The sum of the attributes' cross-entropies, and the accuracy of each attribute.
        """
        pooled = features.float().mean(dim=1)
        logits = [head(pooled) for head in self.heads]
        pairs = list(zip(logits, shown.unbind(dim=1), strict=True))
        loss = torch.stack([functional.cross_entropy(predicted, true) for predicted, true in pairs]).sum()
        right = [(predicted.argmax(dim=1) == true).float().mean().item() for predicted, true in pairs]
        return loss, dict(zip(CHOICES, right, strict=True))
