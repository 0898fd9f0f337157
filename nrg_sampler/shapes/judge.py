"""A judge that shares nothing with the rewards that guide: it grades pixels, with an architecture of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.rewards.configured import ConfiguredModel

LAYOUT = 4  # a frame's features keep where things are on a grid of this side


def temporal_shift(features: Tensor, share: float = 0.125) -> Tensor:
    """Let each frame see some channels of the frame before it and some of the one after.

    Args:
        features: Shape ``(B, T, C, H, W)``.
        share: Of the channels that move, in each direction.

    Returns:
        Same shape; at the ends the moved channels are 0.

    Reference:
        Lin et al., 2018, arXiv:1811.08383 (temporal shift).
    """
    moved = max(1, round(features.shape[2] * share))
    before, after, still = features.split((moved, moved, features.shape[2] - 2 * moved), dim=2)
    padding = (0, 0, 0, 0, 0, 0)  # W, H and C stay
    return torch.cat(
        [functional.pad(before, (*padding, 1, 0))[:, :-1], functional.pad(after, (*padding, 0, 1))[:, 1:], still],
        dim=2,
    )


class ShiftedBlock(nn.Module):
    """A residual block of two convolutions whose input has been shifted in time."""

    def __init__(self, width: int) -> None:
        """Build the layers."""
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, frames: Tensor, count: int) -> Tensor:
        """Update features ``(B * count, C, H, W)`` of clips with ``count`` frames."""
        shifted = temporal_shift(frames.unflatten(0, (-1, count))).flatten(0, 1)
        updated: Tensor = frames + self.second(self.first(shifted))
        return updated


class FrameEncoder(nn.Module):
    """Frames ``(B, 3, T, H, W)`` to one vector each, ``(B, T, dim)``."""

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        """Build the layers."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0] // 2, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList(ShiftedBlock(width) for width in widths)
        steps = itertools.pairwise(widths)
        self.downs = nn.ModuleList(nn.Conv2d(low, high, 3, stride=2, padding=1) for low, high in steps)
        self.normalize = nn.Sequential(nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.squeeze = nn.Conv2d(widths[-1], dim // 4, 1)
        self.where = nn.Linear(LAYOUT**2 * (dim // 4), dim)
        self.what = nn.Linear(widths[-1], dim)

    def forward(self, clips: Tensor) -> Tensor:
        """Encode clips ``(B, 3, T, H, W)`` in ``[0, 1]`` to one vector a frame, ``(B, T, dim)``."""
        count = clips.shape[2]
        frames = self.stem(clips.transpose(1, 2).flatten(0, 1) * 2 - 1)  # (B * T, C, H / 4, W / 4)
        for index, block in enumerate(self.blocks):
            frames = block(frames if index == 0 else self.downs[index - 1](frames), count)
        frames = self.normalize(frames)
        layout = functional.adaptive_avg_pool2d(self.squeeze(frames), LAYOUT)
        # Max pooling detects content wherever it is, without learning it for every place.
        features = self.where(layout.flatten(1)) + self.what(frames.amax(dim=(2, 3)))
        per_clip: Tensor = features.unflatten(0, (-1, count))
        return per_clip


class PixelJudge(ConfiguredModel):
    """Grade finished clips on named axes, from their pixels and the prompt.

    A convolutional frame encoder with temporal shift gives one vector per frame; a small transformer lets frames and
    one query per axis see each other; a second one adds the words of the prompt for the axes in ``text_axes`` alone.
    For grading and for choosing the best of several clips. Guiding with it would spoil it as a judge.

    Args:
        axes: Names of the axes, in output order.
        text_axes: Those that see the prompt.
        words: The vocabulary, in lower case.
        widths: Channels of the frame encoder at 1/4, 1/8, ... of the resolution, multiples of 8.
        dim: Width of the transformers.
        num_heads: Their attention heads.
        depth: Layers of each.
        mean: Mean of each raw grade over samples of the base model.
        std: Its standard deviation there.

    Reference:
        Wu et al., NeurIPS 2024 (VideoRM: frame encoder with temporal shift, temporal transformer over frames).
    """

    @register_to_config
    def __init__(
        self,
        axes: Sequence[str] = ("VQ", "MQ", "TA"),
        text_axes: Sequence[str] = ("TA",),
        words: Sequence[str] = (),
        widths: Sequence[int] = (64, 96, 160),
        dim: int = 160,
        num_heads: int = 5,
        depth: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Build the layers."""
        super().__init__()
        if unknown := set(text_axes) - set(axes):
            raise ValueError(f"Expected `text_axes` to be some of {', '.join(axes)}, but got {', '.join(unknown)}.")
        self.frames = FrameEncoder(widths, dim)
        self.blind_queries = nn.Parameter(torch.randn(1, len(axes) - len(text_axes), dim) / dim**0.5)
        self.text_queries = nn.Parameter(torch.randn(1, len(text_axes), dim) / dim**0.5)
        self.embedding = nn.Embedding(len(words) + 1, dim, padding_idx=0)
        self.temporal = _transformer(dim, num_heads, depth)
        self.joint = _transformer(dim, num_heads, depth)
        self.grades = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1)) for _ in axes)

    def check_compatible(self, pipe: Any) -> None:
        """Refuse to guide.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Expected a reward on noisy latents to guide with, but got a judge, which grades finished pixels; "
            "guide with a LatentReward and keep the judge for grading."
        )

    def forward(self, clips: Tensor, prompts: Sequence[str]) -> Tensor:
        """Grade clips.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; sides of at least 16 pixels.
            prompts: One text per clip.

        Returns:
            Raw grades (logits), float32, shape ``(B, axes)``.

        Raises:
            ValueError: If shapes do not fit or a prompt has words that the judge never saw.
        """
        if len(prompts) != len(clips):
            raise ValueError(f"Expected one prompt for each of {len(clips)} clips, but got {len(prompts)} prompts.")
        return self.grade(*self.watch(clips), prompts)

    def watch(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Look at clips without their prompts.

        Args:
            clips: As for ``forward``.

        Returns:
            The queries of the axes that see no prompt, ``(B, axes, D)``, and the frames' features, ``(B, T, D)``.

        Raises:
            ValueError: If the shape does not fit.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"Expected clips of shape (B, 3, T, H, W), but got {tuple(clips.shape)}.")
        frames = self.frames(clips.to(self.blind_queries.dtype))  # (B, T, D)
        frames = frames + _positions(frames)
        blind = self.blind_queries.expand(len(clips), -1, -1)
        seen = self.temporal(torch.cat([blind, frames], dim=1))
        return seen[:, : blind.shape[1]], seen[:, blind.shape[1] :]

    def grade(self, blind: Tensor, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Raw grades ``(B, axes)`` of clips that were watched, each under a prompt."""
        sighted = self._read_prompt(frames, prompts) if self.config.text_axes else frames[:, :0]
        with_text, without = iter(sighted.unbind(dim=1)), iter(blind.unbind(dim=1))
        queries = [next(with_text if axis in self.config.text_axes else without) for axis in self.axes]  # (B, D) each
        return torch.cat([head(query) for head, query in zip(self.grades, queries, strict=True)], dim=1).float()

    def _read_prompt(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Queries of the axes that see the prompt, ``(B, text axes, D)``."""
        ids = self.word_ids(prompts).to(frames.device)  # (B, L)
        words = self.embedding(ids)
        words = words + _positions(words)
        queries = self.text_queries.expand(len(frames), -1, -1)
        together = torch.cat([queries, frames, words], dim=1)
        padding = functional.pad(ids == 0, (together.shape[1] - ids.shape[1], 0), value=False)
        attended: Tensor = self.joint(together, src_key_padding_mask=padding)[:, : queries.shape[1]]
        return attended

    def word_ids(self, prompts: Sequence[str]) -> Tensor:
        """Number the words of prompts, shape ``(B, L)``; 0 pads the shorter ones.

        Raises:
            ValueError: If a word is not among those the judge was trained on.
        """
        indices = {word: index for index, word in enumerate(self.config.words, start=1)}
        split = [re.sub(r"[.,;:!?\"'()]", " ", prompt.lower()).split() for prompt in prompts]
        unknown = list(dict.fromkeys(word for words in split for word in words if word not in indices))
        if unknown:
            raise ValueError(
                f"Expected words that the judge was trained on, but got {', '.join(map(repr, unknown))}; "
                f"write the prompt with these: {', '.join(self.config.words)}."
            )
        ids = torch.zeros(len(prompts), max((len(words) for words in split), default=0), dtype=torch.long)
        for row, words in enumerate(split):
            ids[row, : len(words)] = torch.tensor([indices[word] for word in words], dtype=torch.long)
        return ids


def _transformer(dim: int, heads: int, depth: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)


def _positions(tokens: Tensor) -> Tensor:
    """Sines and cosines of the position, ``(N, D)``, for tokens ``(B, N, D)``: any number of frames or words."""
    count, dim = tokens.shape[1:]
    rate = torch.exp(torch.linspace(0, -6, dim // 2, device=tokens.device))  # from one position to a few hundred
    angle = torch.arange(count, device=tokens.device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1).to(tokens.dtype)
