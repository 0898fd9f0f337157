"""Name what a clip shows: an exercise that teaches features what prompts are about; there in training alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.shapes.train.train_text import CHOICES


class AttributeClassifier(nn.Module):
    """Names shape, colour, motion, background and size from a model's features of a clip.

    Whether a clip fits its prompt is a faint signal as long as the features do not hold what the clip shows. Naming it
    teaches them within minutes.

    Args:
        dim: Width of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(values)) for values in CHOICES.values())

    def forward(self, features: Tensor, shown: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Name what clips show.

        Args:
            features: Shape ``(B, N, dim)``; their mean is what is read.
            shown: The right answers, attribute indices, ``(B, 5)``.

        Returns:
            The sum of the attributes' cross-entropies, and for each the share that was named rightly.
        """
        pooled = features.float().mean(dim=1)
        logits = [head(pooled) for head in self.heads]
        answers = shown.unbind(dim=1)
        misnamed = torch.stack([functional.cross_entropy(*pair) for pair in zip(logits, answers, strict=True)]).sum()
        right = [(guess.argmax(dim=1) == answer).float().mean().item() for guess, answer in zip(logits, answers)]
        return misnamed, dict(zip(CHOICES, right, strict=True))
