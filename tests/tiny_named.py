"""Tiny random models of the real classes, in the layouts in which image rewards are published."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipModel,
)

from nrg_sampler.rewards.named.aesthetic import ClipHead, SiglipHead

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = {
    token: index for index, token in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS), BOS, EOS])
}
TOKENS, SIDE = 16, 28  # what the towers take
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**LAYERS, "image_size": SIDE, "patch_size": 14}
NAMES = ("pickscore", "hpsv2", "hpsv2.1", "clipscore", "aesthetic", "aesthetic-v2.5", "imagereward")
BERT_VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]


def tokenizer() -> CLIPTokenizer:
    """One token a letter."""
    return CLIPTokenizer(vocab=VOCABULARY, merges=[])


def clip(hidden_act: str = "gelu") -> CLIPModel:
    """A model with other weights for each position and channel than it is made with."""
    ids = {"bos_token_id": VOCABULARY[BOS], "eos_token_id": VOCABULARY[EOS], "pad_token_id": VOCABULARY[EOS]}
    size = {"vocab_size": len(VOCABULARY), "max_position_embeddings": TOKENS}
    config = CLIPConfig(
        text_config={**LAYERS, **size, **ids, "hidden_act": hidden_act},
        vision_config={**VISION, "hidden_act": hidden_act},
        projection_dim=24,
    )
    return shaken(CLIPModel(config))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Let no weight be 0 or 1, as biases and norms are made, or a wrong place for it would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def open_clip_state(model: CLIPModel) -> dict[str, torch.Tensor]:
    """The state dict that open_clip would have of a model, written from open_clip's side."""
    own = model.state_dict()
    state = {"logit_scale": own["logit_scale"], "text_projection": own["text_projection.weight"].T.contiguous()}
    state["visual.proj"] = own["visual_projection.weight"].T.contiguous()
    for prefix, tower in (("", "text_model"), ("visual.", "vision_model")):
        state[f"{prefix}positional_embedding"] = own[f"{tower}.embeddings.position_embedding.weight"]
        for block in range(LAYERS["num_hidden_layers"]):
            layer, there = f"{tower}.encoder.layers.{block}", f"{prefix}transformer.resblocks.{block}"
            for kind in ("weight", "bias"):
                thirds = [own[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                state[f"{there}.attn.in_proj_{kind}"] = torch.cat(thirds)
                state[f"{there}.attn.out_proj.{kind}"] = own[f"{layer}.self_attn.out_proj.{kind}"]
                state[f"{there}.ln_1.{kind}"] = own[f"{layer}.layer_norm1.{kind}"]
                state[f"{there}.ln_2.{kind}"] = own[f"{layer}.layer_norm2.{kind}"]
                state[f"{there}.mlp.c_fc.{kind}"] = own[f"{layer}.mlp.fc1.{kind}"]
                state[f"{there}.mlp.c_proj.{kind}"] = own[f"{layer}.mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = own[f"text_model.final_layer_norm.{kind}"]
        state[f"visual.ln_pre.{kind}"] = own[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = own[f"vision_model.post_layernorm.{kind}"]
    state["token_embedding.weight"] = own["text_model.embeddings.token_embedding.weight"]
    state["visual.class_embedding"] = own["vision_model.embeddings.class_embedding"]
    state["visual.conv1.weight"] = own["vision_model.embeddings.patch_embedding.weight"]
    return state


def image_reward_state() -> dict[str, torch.Tensor]:
    """Random weights under the names of ImageReward's own code, written from its side."""
    state: dict[str, torch.Tensor] = {}
    dim, inner, generator = LAYERS["hidden_size"], LAYERS["intermediate_size"], torch.Generator().manual_seed(5)

    def add(name: str, *shape: int, bias: bool = True) -> None:
        fan_in = torch.Size(shape[1:]).numel()
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) / 4

    def add_norm(name: str) -> None:
        state[f"{name}.weight"] = torch.rand(dim, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(dim, generator=generator) / 4

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    state[f"{eye}.cls_token"] = torch.randn(1, 1, dim, generator=generator)
    state[f"{eye}.pos_embed"] = torch.randn(1, 1 + (SIDE // 14) ** 2, dim, generator=generator)
    add(f"{eye}.patch_embed.proj", dim, 3, 14, 14)
    add_norm(f"{eye}.norm")
    add(f"{text}.embeddings.word_embeddings", len(BERT_VOCABULARY), dim, bias=False)
    add(f"{text}.embeddings.position_embeddings", 64, dim, bias=False)
    add_norm(f"{text}.embeddings.LayerNorm")
    state[f"{text}.embeddings.position_ids"] = torch.arange(64)[None]
    for block in range(LAYERS["num_hidden_layers"]):
        here = f"{eye}.blocks.{block}"
        for norm in ("norm1", "norm2"):
            add_norm(f"{here}.{norm}")
        add(f"{here}.attn.qkv", 3 * dim, dim)
        add(f"{here}.attn.proj", dim, dim)
        add(f"{here}.mlp.fc1", inner, dim)
        add(f"{here}.mlp.fc2", dim, inner)
        there = f"{text}.encoder.layer.{block}"
        for attention in ("attention", "crossattention"):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add(f"{there}.{attention}.{part}", dim, dim)
            add_norm(f"{there}.{attention}.output.LayerNorm")
        add(f"{there}.intermediate.dense", inner, dim)
        add(f"{there}.output.dense", dim, inner)
        add_norm(f"{there}.output.LayerNorm")
    for name in ("vision_proj", "text_proj"):  # of BLIP's training, which scoring does without
        add(f"blip.{name}", 8, dim)
    widths = (dim, 1024, 128, 64, 16, 1)
    for number, (before, after) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        add(f"mlp.layers.{number}", after, before)
    return state


def write(name: str, folder: Path) -> Path:
    """Write a reward as it is published, with the tokenizer or tower that belongs to it beside."""
    torch.manual_seed(1)
    if name == "imagereward":
        torch.save(image_reward_state(), folder / "ImageReward.pt")
        text = {**LAYERS, "vocab_size": len(BERT_VOCABULARY), "max_position_embeddings": 64}
        BlipConfig(vision_config={**VISION, "layer_norm_eps": 1e-6}, text_config=text).save_pretrained(folder)
        BertTokenizer(vocab={token: index for index, token in enumerate(BERT_VOCABULARY)}).save_pretrained(folder)
        return folder
    if name == "aesthetic-v2.5":
        text = {**LAYERS, "vocab_size": 10}
        model, head = shaken(SiglipModel(SiglipConfig(vision_config=VISION, text_config=text))), SiglipHead(32)
        torch.save(shaken(head).state_dict(), folder / "aesthetic_predictor_v2_5.pth")
        model.save_pretrained(folder)
        return folder
    model = clip("gelu" if re.match("hps|pick", name) else "quick_gelu")
    tokenizer().save_pretrained(folder)
    if name.startswith("hpsv2"):
        model.config.save_pretrained(folder)
        file = "HPS_v2.1_compressed.pt" if name == "hpsv2.1" else "HPS_v2_compressed.pt"
        torch.save({"epoch": 1, "name": name, "state_dict": open_clip_state(model)}, folder / file)
        return folder
    model.save_pretrained(folder)
    if name == "aesthetic":
        torch.save(shaken(ClipHead(24)).state_dict(), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder
