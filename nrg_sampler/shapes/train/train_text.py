"""Train the text encoder: a small UMT5 with a word-level tokenizer; every output token encodes the whole caption.

The encoder is trained first, alone, to predict the attributes of a caption (or that they are left open) from each of
its output tokens. Cross-attention then gets the whole caption from any token, which a small video model learns fast.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nrg_sampler.shapes.scenes import ATTRIBUTES, SIZES, Prompt, caption, sample_prompt, vocabulary
from nrg_sampler.shapes.train.loop import LoopSettings, fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

TEXT_DIM = 96
CHOICES = {**ATTRIBUTES, "size": tuple(SIZES)}


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words: lower case, punctuation dropped, ``</s>`` at the end as UMT5 has it."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[.,;:!?\"'()]"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def new_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """Build the encoder with random weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size, d_model=TEXT_DIM, d_kv=24, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0
        )
    )


def encode_text(
    tokenizer: PreTrainedTokenizerFast, text_encoder: nn.Module, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """Embed captions as ``WanPipeline`` does: padding positions are zero.

    Returns:
        Embeddings ``(B, L, TEXT_DIM)`` and the mask of real tokens ``(B, L)``, ``L`` the longest caption plus one.
    """
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    mask = nn.functional.pad(tokens.attention_mask, (0, 1))  # at least one padding position in every row
    device = next(text_encoder.parameters()).device
    embeds = text_encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state
    embeds = nn.functional.pad(embeds, (0, 0, 0, 1)) * mask[..., None].to(embeds)
    return embeds, mask.bool().to(device)


def attribute_labels(prompts: list[Prompt]) -> Tensor:
    """Return the index of each attribute's value, shape ``(B, attributes)``; one past the last where it is open."""
    rows = []
    for prompt in prompts:
        values = [getattr(prompt, name) for name in CHOICES]
        rows.append(
            [
                options.index(value) if value is not None else len(options)
                for value, options in zip(values, CHOICES.values(), strict=True)
            ]
        )
    return torch.tensor(rows)


class CaptionClassifier(nn.Module):
    """The encoder with a linear classifier for each attribute, which is needed in training alone.

    Args:
        text_encoder: The encoder.
    """

    def __init__(self, text_encoder: nn.Module) -> None:
        """Add the classifiers to the encoder."""
        super().__init__()
        self.text_encoder = text_encoder
        self.heads = nn.ModuleList(nn.Linear(TEXT_DIM, len(options) + 1) for options in CHOICES.values())


def train_text(
    folder: Path, steps: int = 400, batch: int = 64, seed: int = 0, device: str = "cpu"
) -> Iterator[dict[str, float]]:
    """Train the text encoder on captions of the training split and save it with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = new_tokenizer()
    text_encoder = new_text_encoder(len(tokenizer))
    classifier = CaptionClassifier(text_encoder).to(device)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        prompts = [sample_prompt(rng) for _ in range(batch)]
        embeds, mask = encode_text(tokenizer, classifier.text_encoder, [caption(prompt, rng) for prompt in prompts])
        labels = attribute_labels(prompts).to(device)
        total, right = embeds.new_zeros(()), []
        for index, head in enumerate(classifier.heads):
            logits = head(embeds)  # (B, L, options)
            target = labels[:, index, None].expand(mask.shape)
            total = total + nn.functional.cross_entropy(logits[mask], target[mask])
            right.append((logits.argmax(-1) == target)[mask].float().mean().item())
        # Keep the embeddings near unit scale: they feed the transformer as they are.
        total = total + 0.01 * (embeds[mask].pow(2).mean() - 1).abs()
        return total, {"accuracy": min(right)}

    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-3)
    settings = LoopSettings(steps, ema=0.99, seed=seed, about={"batch": batch})
    yield from fit(classifier, loss, [optimizer], settings, folder / "text.pt")
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder.to("cpu").save_pretrained(folder / "text_encoder")
