"""What the judges on Qwen2-VL have in common: one conversation about what is seen, read at tokens of their own.

References:
    [1] Wang et al., 2024, arXiv:2409.12191 (Qwen2-VL).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nrg_sampler.rewards.named.judge import NamedJudge
from nrg_sampler.rewards.named.qwen_frames import MERGE
from nrg_sampler.rewards.named.table import Entry

PROMPT_PLACE = "{text_prompt}"
# Qwen2-VL's conversation with one picture or video and one question.
CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|>{media}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True)
class Media:
    """How Qwen2-VL is shown something.

    Args:
        token: Stands in the text for four patches.
        pixels: Argument of the model for the patches.
        grid: That for their grid.
    """

    token: str
    pixels: str
    grid: str


IMAGE = Media("<|image_pad|>", "pixel_values", "image_grid_thw")
VIDEO = Media("<|video_pad|>", "pixel_values_videos", "video_grid_thw")


class QwenJudge(NamedJudge):
    """Read a clip and its prompt with a frozen Qwen2-VL.

    Args:
        entry: Its row of the table.
        model: A ``Qwen2VLModel``, which has no text head.
        head: From hidden states to what is scored.
        tokenizer: Its tokenizer, with the judge's own tokens.
        question: The wording, with the judge's own tokens and a place for the prompt.
        checkpointing: Keep no activations of the blocks, and compute each again in the backward pass.
    """

    tokens: tuple[str, ...]  # at which the head reads, in the order of the scores
    media: Media

    def __init__(
        self, entry: Entry, model: Any, head: nn.Module, tokenizer: Any, question: str, checkpointing: bool = True
    ) -> None:
        super().__init__(entry, model)
        self.head, self.tokenizer, self.question = head, tokenizer, question
        self.reward_tokens: list[int] = tokenizer.convert_tokens_to_ids(list(self.tokens))
        if checkpointing:
            for blocks in (model.visual.blocks, model.language_model.layers):
                for index, block in enumerate(blocks):
                    blocks[index] = Recomputed(block)
        self.requires_grad_(False).eval()

    def token_ids(self, prompt: str, seen: int) -> Tensor:
        """Return the token ids of the conversation, shape ``(1, L)``.

        Args:
            prompt: The prompt of the clip.
            seen: How many tokens the picture or video has.

        Raises:
            ValueError: If the prompt has what the tokenizer takes for a mark.
        """
        if "<|" in prompt:
            raise ValueError(
                f"Expected a prompt without the tokenizer's marks '<|', but got {prompt!r}; leave them out."
            )
        question = self.question.replace(PROMPT_PLACE, prompt)
        text = CONVERSATION.replace("{question}", question).replace("{media}", self.media.token * seen, 1)
        ids: Tensor = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return ids

    def read(self, patches: Tensor, grid: tuple[int, int, int], prompt: str) -> Tensor:
        """Return the hidden states at the judge's own tokens, shape ``(len(tokens), D)``.

        Args:
            patches: As :func:`~nrg_sampler.rewards.named.qwen_frames.patchified` returns them.
            grid: Likewise.
            prompt: The prompt of the clip.
        """
        ids = self.token_ids(prompt, math.prod(grid) // MERGE**2).to(self.device)
        # The published models number their tokens one after the other, without Qwen2-VL's positions in space and time:
        # they call the language model without any, which then counts.
        positions = torch.arange(ids.shape[1], device=self.device).expand(3, 1, -1)
        shown = {
            self.media.pixels: patches.to(self.device, self.dtype),
            self.media.grid: torch.tensor([grid], device=self.device),
        }
        hidden = self.model(input_ids=ids, position_ids=positions, use_cache=False, **shown).last_hidden_state
        places = [int((ids[0] == token).nonzero()) for token in self.reward_tokens]
        read: Tensor = hidden[0, places]
        return read


class Recomputed(nn.Module):
    """A block that keeps what goes in, and computes the rest again in the backward pass.

    In full, attention too: the sequence is short, and each axis may want a backward pass of its own.

    Args:
        block: A block of a frozen transformer.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **named: Any) -> Any:
        """Call the block."""
        if not torch.is_grad_enabled():
            return self.block(*args, **named)
        # The weights of now: where a judge rests elsewhere, they are lent to this call and gone in the backward pass.
        weights = {**dict(self.block.named_parameters()), **dict(self.block.named_buffers())}
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(functional_call, self.block, weights, args, named, **options)


def new_whole(config: Any, tokenizer: Any, new_head: Callable[[int], nn.Module]) -> nn.Module:
    """Return a model as it is published, ``model`` and ``rm_head``, that has no weights yet.

    Args:
        config: Of the base model; its vocabulary becomes that of the tokenizer, as published.
        tokenizer: With the judge's own tokens.
        new_head: Makes the head for a width of hidden states.
    """
    from accelerate import init_empty_weights
    from transformers import Qwen2VLModel

    config.text_config.vocab_size = len(tokenizer)
    with init_empty_weights(include_buffers=False):
        whole = nn.Module()
        whole.model = Qwen2VLModel(config)
        whole.rm_head = new_head(config.text_config.hidden_size)
    return whole


def wording(file: Path, names: Sequence[str], advice: str) -> str:
    """Join the texts that a Python file assigns to names at its top; the file is read, not run.

    Raises:
        ValueError: If one is not there.
    """
    found: dict[str, str] = {}
    try:
        for line in ast.parse(file.read_text(encoding="utf-8-sig")).body:
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                found |= {str(getattr(target, "id", "")): str(line.value.value) for target in line.targets}
    except (OSError, SyntaxError, ValueError):
        pass
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"Expected the published question {missing[0]} in {file}, but found none; {advice}.")
    return "".join(found[name] for name in names)


def check_question(question: str, parts: Sequence[str], file: Path, reason: str) -> None:
    """Refuse a question that has not each of ``parts`` once, in this order.

    Raises:
        ValueError: With the ``reason`` for their order.
    """
    places = [question.find(part) for part in parts]
    if -1 in places or places != sorted(places) or any(question.count(part) != 1 for part in parts):
        raise ValueError(
            f"Expected {', '.join(parts[:-1])} and {parts[-1]} in this order in {file}, but it differs; {reason}."
        )
