"""Tiny random models of the real classes, in the layouts in which image rewards are published."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import (
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
NAMES = ("pickscore", "hpsv2", "hpsv2.1", "clipscore", "aesthetic", "aesthetic-v2.5")


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


def write(name: str, folder: Path) -> Path:
    """Write a reward as it is published, with the tokenizer or tower that belongs to it beside."""
    torch.manual_seed(1)
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
