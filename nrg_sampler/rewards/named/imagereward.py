"""ImageReward: BLIP's vision tower, and a text encoder that attends to what it sees.

It is published with the names of its own code; for each weight of transformers' ``BlipVisionModel`` and
``BlipTextModel`` it is known here under which name it lies in the file, so that every key is accounted for in both
directions. Both towers are BLIP's large size, the encoder with layers of cross-attention, as a decoder has them.

References:
    [1] Xu et al., 2023, arXiv:2304.05977 (ImageReward).
    [2] Li et al., 2022, arXiv:2201.12086 (BLIP).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.named.aesthetic import ClipHead
from nrg_sampler.rewards.named.judge import FrameJudge, require_one_each, warn_of_truncation
from nrg_sampler.rewards.named.preprocessing import Preprocessing
from nrg_sampler.rewards.named.table import Entry
from nrg_sampler.rewards.published import require_same_keys

MOST_TOKENS = 35  # of a prompt, with those of its begin and its end
RAW_MEAN, RAW_STD = 0.16717362830052426, 1.0333394966054072  # of the head's output, as published

# What is not stated here is the default of the configs.
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
UNUSED = re.compile(r"blip\.(vision|text)_proj\.(weight|bias)")  # of BLIP's own training

VISION_PARTS = {
    "embeddings.class_embedding": "cls_token",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.patch_embedding": "patch_embed.proj",
    "post_layernorm": "norm",
}
BLOCK = re.compile(r"encoder\.layers\.(?P<block>\d+)\.(?P<part>.+)")
IN_BLOCK = {
    "layer_norm1": "norm1",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ImageRewardModel(nn.Module):
    """The towers and the head.

    Args:
        vision: A ``BlipVisionModel``.
        text: A ``BlipTextModel`` with layers of cross-attention.
        head: Reads the first token of the text.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Score prepared pictures ``(N, 3, size, size)`` by tokens ``(N, L)``; returns ``(N, 1)``."""
        seen = self.vision(pixels).last_hidden_state  # (N, patches + 1, D)
        read = self.text(ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state  # (N, L, D')
        score: Tensor = (self.head(read[:, 0]) - RAW_MEAN) / RAW_STD
        return score


def published_name(name: str) -> str:
    """Return the published key of a weight of :class:`ImageRewardModel`."""
    tower, _, rest = name.partition(".")
    if tower == "head":
        return f"mlp.{rest}"
    if tower == "text":
        return f"blip.text_encoder.{rest}"
    if rest in VISION_PARTS:
        return f"blip.visual_encoder.{VISION_PARTS[rest]}"
    part, _, kind = rest.rpartition(".")
    if match := BLOCK.fullmatch(part):
        return f"blip.visual_encoder.blocks.{match['block']}.{IN_BLOCK[match['part']]}.{kind}"
    return f"blip.visual_encoder.{VISION_PARTS[part]}.{kind}"


def from_published(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """Return the weights of an :class:`ImageRewardModel`.

    Args:
        state: Weights by their published names.
        expected: Those of the model, whose values do not count.
        source: The file, for the message.

    Raises:
        ValueError: If a key is missing, too many or of another shape; it is named as in the file.
    """
    used = {key: value for key, value in state.items() if not UNUSED.fullmatch(key)}
    require_same_keys(used, {published_name(name): value for name, value in expected.items()}, source)
    return {name: used[published_name(name)] for name in expected}


def new_model(vision: Any, text: Any) -> ImageRewardModel:
    """Return a model of a ``BlipVisionConfig`` and a ``BlipTextConfig``."""
    from transformers import BlipTextModel, BlipVisionModel

    text.is_decoder = True  # gives its layers the cross-attention; they still read the prompt in both directions
    text.encoder_hidden_size = vision.hidden_size
    towers = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
    return ImageRewardModel(*towers, ClipHead(text.hidden_size))


class ImageRewardJudge(FrameJudge):
    """Score frames by their prompts as ImageReward does.

    Args:
        entry: Its row of the table.
        model: The towers and the head.
        tokenizer: That of ``bert-base-uncased``.
    """

    def __init__(self, entry: Entry, model: ImageRewardModel, tokenizer: Any) -> None:
        super().__init__(entry, model, Preprocessing(int(model.vision.config.image_size), entry.fit))  # type: ignore[union-attr, arg-type]
        self.tokenizer = tokenizer
        self._truncation_said = False

    def forward(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score clips.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; the gradient reaches them.
            prompts: One for each clip. One of more than 35 tokens is cut off, with a warning once.

        Returns:
            Shape ``(B, 1)``, in the published standard units.

        Raises:
            ValueError: If ``frames`` are none, or the prompts are not one for each clip.
        """
        require_one_each(prompts, frames)
        ids, mask = (part.to(self.device) for part in self.tokens(prompts))

        def score(pixels: Tensor) -> Tensor:
            rows = torch.arange(len(ids), device=ids.device).repeat_interleave(frames.shape[2])  # of each frame
            scored: Tensor = self.model(pixels, ids[rows], mask[rows])
            return scored

        return self.over_frames(frames, score)

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return token ids and which of them count, each ``(B, L)``."""
        longest = max(map(len, self.tokenizer(list(prompts), verbose=False)["input_ids"]))
        if longest > MOST_TOKENS and not self._truncation_said:
            self._truncation_said = True
            warn_of_truncation(self.entry, MOST_TOKENS, longest)
        found = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]
