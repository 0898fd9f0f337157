"""Rewards that are a CLIP model: the cosine between a frame and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.rewards.named.judge import FrameJudge, require_one_each, warn_of_truncation
from nrg_sampler.rewards.named.preprocessing import Preprocessing
from nrg_sampler.rewards.named.table import Entry


class ClipJudge(FrameJudge):
    """Score frames by their prompts with a ``CLIPModel``: PickScore, HPSv2, CLIPScore.

    Args:
        entry: Its row of the table.
        model: A ``CLIPModel``.
        tokenizer: Its tokenizer.
        preprocessing: By default that of the entry, at the size of the model.
    """

    def __init__(self, entry: Entry, model: Any, tokenizer: Any, preprocessing: Preprocessing | None = None) -> None:
        size = int(model.config.vision_config.image_size)
        super().__init__(entry, model, preprocessing or Preprocessing(size, entry.fit))
        self.tokenizer = tokenizer
        self._truncation_said = False
        self._last: tuple[Any, Tensor] | None = None

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score clips.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; the gradient reaches them.
            prompts: One for each clip. One that is longer than the text tower takes is cut off, with a warning once.

        Returns:
            Raw scores, shape ``(B, 1)``.

        Raises:
            ValueError: If ``frames`` are none, or the prompts are not one for each clip.
        """
        require_one_each(prompts, frames)
        texts = self._texts(tuple(prompts))  # (B, D)

        def cosine(pixels: Tensor) -> Tensor:
            features = self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
            features = functional.normalize(features, dim=-1)
            of_frames = texts.repeat_interleave(frames.shape[2], dim=0)  # (B * T, D)
            return self._factor() * (features * of_frames).sum(dim=-1, keepdim=True)

        return self.over_frames(frames, cosine)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Return the unit vectors of prompts, shape ``(B, D)``."""
        ids = self._tokens(prompts).to(self.device)
        hidden = self.model.text_model(ids).last_hidden_state  # (B, L, D'), normalised
        # At the first end of text, whatever stands behind it: open_clip pads with 0, transformers mostly with the end
        # of text again, and in a causal tower neither changes what is read here.
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(dim=-1)
        pooled = hidden[torch.arange(len(ids), device=ids.device), ends]
        return functional.normalize(self.model.text_projection(pooled), dim=-1)

    def _texts(self, prompts: tuple[str, ...]) -> Tensor:
        """The same for every step of a run, hence kept; outside inference mode, so that autograd may use it."""
        key = (prompts, self.device, self.dtype)
        if self._last is None or self._last[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._last = (key, self.text_features(prompts))
        return self._last[1]

    def _tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids, padded on the right and cut to what the tower takes, with the end of text kept."""
        most, end = int(self.model.config.text_config.max_position_embeddings), self.tokenizer.eos_token_id
        rows: list[list[int]] = self.tokenizer(list(prompts), verbose=False)["input_ids"]
        longest = max(map(len, rows))
        if longest > most and not self._truncation_said:
            self._truncation_said = True
            warn_of_truncation(self.entry, most, longest)
        rows = [row if len(row) <= most else [*row[: most - 1], end] for row in rows]
        width = max(map(len, rows))
        return torch.tensor([[*row, *[end] * (width - len(row))] for row in rows])

    def _factor(self) -> Tensor | float:
        return self.model.logit_scale.exp() if self.entry.factor is None else self.entry.factor
