"""Train the base model: a small Wan transformer that learns the velocity of cached latents from captions."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nrg_sampler.files import fingerprint, replacing
from nrg_sampler.flow import noised, velocity_from
from nrg_sampler.rewards.latent_space import normalised
from nrg_sampler.runs.device import fast_autocast
from nrg_sampler.shapes.render import draw, render
from nrg_sampler.shapes.scenes import Prompt, caption, sample_prompt, sample_scene
from nrg_sampler.shapes.train.loop import LoopSettings, fit
from nrg_sampler.shapes.train.origin import is_made, models_in, note_origin
from nrg_sampler.shapes.train.start import start_transformer
from nrg_sampler.shapes.train.train_text import TEXT_DIM, encode_text
from nrg_sampler.shapes.train.train_vae import Z_DIM

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

BLOCKS = 12
HEADS, HEAD_DIM = 6, 32
CONTEXT_LENGTHS = (32, 512)  # prompt lengths that must give the same velocity; 512 is WanPipeline's default
CAPTION_DROPOUT = 0.1
CHUNK = 2000  # clips that are encoded into one file, so that an interrupted run loses a minute
HOLD = 0.8
# How much more often than others a clip is drawn that is learned late: 850 steps after the start from the model of
# 0.1.0, 6 of 18 clips of shapes that circle and 8 of 17 of stars were right, and nearly all others.
CIRCLING, STARS = 2.5, 2.0
TOKENS = 24  # a little more than the longest caption


def new_transformer() -> WanTransformer3DModel:
    """Build the base model with random weights."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=4 * HEADS * HEAD_DIM,
        num_layers=BLOCKS,
        rope_max_seq_len=64,
    )


class TrainingAttention:
    """Wan's attention for training: twice as fast on a CPU, and short prompts count as if padded to a greater length.

    With a hundred tokens plain matrix products beat fused attention backward. And ``WanPipeline`` pads every prompt to
    512 positions whose keys are all the same: a padding key that stands for ``n`` of them gets ``log n`` added to its
    logits, which is the same softmax without 490 idle keys.
    """

    bias: Tensor | None = None  # for cross-attention, see `padding_bias`

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend, with the arguments of ``WanAttnProcessor``."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))  # (B, N, heads, d)
        key = attn.norm_k(attn.to_k(context)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        logits = query @ key.mT * query.shape[-1] ** -0.5  # (B, heads, N, L)
        if encoder_hidden_states is not None and self.bias is not None:
            logits = logits + self.bias
        attended = logits.softmax(dim=-1).to(value.dtype) @ value
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return output


def _rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of neighbouring numbers, as ``WanAttnProcessor`` does, shape ``(B, N, heads, d)``."""
    first, second = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).type_as(tokens)


def padding_bias(mask: Tensor, length: int) -> Tensor:
    """Return the logit bias ``(B, 1, 1, L)`` with which the padding in ``mask`` counts like padding to ``length``."""
    padding = (~mask).sum(dim=1, keepdim=True)
    wanted = length - mask.sum(dim=1, keepdim=True)
    return torch.where(mask, 0.0, (wanted / padding).log())[:, None, None]


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, clips: Tensor) -> Tensor:
    """Encode clips ``(B, 3, T, H, W)`` in ``[0, 1]`` to normalised latents."""
    with fast_autocast(clips.device):
        latents = vae.encode(clips * 2 - 1).latent_dist.mode()
    return normalised(vae, latents.float())


def training_prompts(count: int, seed: int) -> list[Prompt]:
    """Draw prompts of the training split."""
    rng = random.Random(f"clips/{seed}")
    return [sample_prompt(rng) for _ in range(count)]


def cache_latents(vae: AutoencoderKLWan, prompts: list[Prompt], folder: Path, seed: int, device: str) -> Iterator[int]:
    """Render and encode one clip a prompt into the files of :func:`latent_files`, once; yields how many are done."""
    origin = models_in(folder, "vae")
    for index, file in enumerate(latent_files(folder, len(prompts))):
        if is_made(file, origin):
            continue
        chunk = prompts[index * CHUNK : (index + 1) * CHUNK]
        rng = random.Random(f"scenes/{seed}/{index}")
        done: list[Tensor] = []
        for start in range(0, len(chunk), 40):
            scenes = [sample_scene(prompt, rng) for prompt in chunk[start : start + 40]]
            done.append(encode_clips(vae, render(draw(scenes)).to(device)).half().cpu())
            yield index * CHUNK + start + len(scenes)
        with replacing(file) as partial:
            save_file({"latents": torch.cat(done)}, partial)
        note_origin(file, origin)


def latent_files(folder: Path, clips: int) -> list[Path]:
    """Name the files that hold the latents of so many training clips, ``CHUNK`` in each."""
    return [folder / f"latents-{index:02d}.safetensors" for index in range(-(-clips // CHUNK))]


def train_base(
    folder: Path,
    steps: int = 20000,
    batch: int = 32,
    clips: int = 30000,
    seed: int = 0,
    device: str = "cpu",
    start: Path | None = None,
) -> Iterator[dict[str, float]]:
    """Train on rendered clips of the training split and save ``folder/transformer``; needs the vae and text stages.

    Args:
        folder: Holds ``vae``, ``tokenizer`` and ``text_encoder``.
        steps: Optimiser steps.
        batch: Clips a step.
        clips: Clips that are rendered and encoded once.
        seed: Seed of prompts, scenes and steps.
        device: Where to train.
        start: An earlier pipeline to take the first weights from, see :func:`~.start.start_transformer`.
    """
    from diffusers import AutoencoderKLWan
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder").to(device).eval()
    prompts = training_prompts(clips, seed)
    for count in cache_latents(vae, prompts, folder, seed, device):
        yield {"step": 0, "loss": math.nan, "encoded": count}
    latents = torch.cat([load_file(file)["latents"] for file in latent_files(folder, clips)])

    weights = [drawn_weight(prompt) for prompt in prompts]
    torch.manual_seed(seed)
    transformer = new_transformer()
    if start is not None:
        start_transformer(transformer, start)
    transformer.to(device)
    attention = TrainingAttention()
    for block in transformer.blocks:
        block.attn1.set_processor(attention)
        block.attn2.set_processor(attention)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(seed * 1_000_003 + step)
        rows = rng.choices(range(len(prompts)), weights, k=batch)
        texts = ["" if rng.random() < CAPTION_DROPOUT else caption(prompts[row], rng) for row in rows]
        with torch.no_grad():
            embeds, mask = encode_text(tokenizer, text_encoder, texts)
            embeds, mask = fixed_length(embeds, mask)
        attention.bias = padding_bias(mask, rng.choice(CONTEXT_LENGTHS))
        clean = latents[rows].float().to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        sigma = torch.sigmoid(torch.randn(batch, generator=generator) * 1.1 + 0.4).to(device)
        with fast_autocast(device):
            velocity = transformer(noised(clean, noise, sigma), sigma * 1000, embeds, return_dict=False)[0]
        return (velocity.float() - velocity_from(clean, noise)).pow(2).mean(), {}

    optimizers = new_optimizers(transformer)
    about = {"batch": batch, "clips": clips, **models_in(folder, "vae", "text_encoder")}
    about["start"] = fingerprint(start) if start else ""
    settings = LoopSettings(steps, warmup=200, hold=HOLD, seed=seed, about=about)
    yield from fit(transformer, loss, optimizers, settings, folder / "base.pt")
    transformer.to("cpu").save_pretrained(folder / "transformer")


def drawn_weight(prompt: Prompt) -> float:
    """Return how much more often than others a clip of a prompt is drawn."""
    circles = prompt.motion in ("clockwise", "counterclockwise")
    return (CIRCLING if circles else 1.0) * (STARS if prompt.shape == "star" else 1.0)


def fixed_length(embeds: Tensor, mask: Tensor, length: int = TOKENS) -> tuple[Tensor, Tensor]:
    """Pad embeddings and their mask to one length."""
    missing = length - embeds.shape[1]
    return nn.functional.pad(embeds, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))


def new_optimizers(
    model: nn.Module, lr: float = 1.5e-3, weight_decay: float = 0.01, layers: str = "blocks"
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of modules named ``layers``, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = layers in name and parameter.ndim == 2 and name.endswith("weight")
        (matrices if inside else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay),
    ]
