"""A tiny random latent PRM in a folder: the first blocks of a tiny HunyuanVideo transformer, and a head."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_families.base import DIM as TEXT
from tiny_families.base import HEADS, tiny
from torch import Tensor
from torch.nn import functional

from nrg_sampler.rewards.base import Conditioning

DIM, POOLED, REFINERS = 16, 8, 1
ROPE = (2, 2, 4)
SETTINGS = {"rope_axes_dim": ROPE, "activation": "silu", "attention_heads": 2}


def transformer(layers: int = 2, single: int = 1, guidance: bool = False) -> Any:
    """A whole transformer with weights that are nowhere 0 or 1, as biases and norms are made."""
    whole = tiny(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        **{**HEADS, "num_layers": layers},
        rope_axes_dim=ROPE,
        num_single_layers=single,
        num_refiner_layers=REFINERS,
        text_embed_dim=TEXT,
        pooled_projection_dim=POOLED,
        guidance_embeds=guidance,
    )()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in whole.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return whole


def attention_head(queries: str = "reward_head.query.weight", count: int = 2) -> dict[str, Tensor]:
    """Queries that attend, and two linear layers with an activation between them."""
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    return {
        queries: 4 * rand(count, DIM),
        "reward_head.attention.0.in_proj_weight": 4 * rand(3 * DIM, DIM),
        "reward_head.attention.0.in_proj_bias": rand(3 * DIM),
        "reward_head.attention.0.out_proj.weight": rand(DIM, DIM),
        "reward_head.attention.0.out_proj.bias": rand(DIM),
        "reward_head.mlp.0.weight": 2 * rand(12, DIM),
        "reward_head.mlp.0.bias": rand(12),
        "reward_head.mlp.3.weight": 2 * rand(1, 12),
    }


def mean_head() -> dict[str, Tensor]:
    """One linear layer on the mean."""
    return {"head.weight": torch.linspace(-1, 1, DIM)[None], "head.bias": torch.tensor([0.5])}


def state_of(whole: Any, head: dict[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    """A checkpoint with the blocks of a transformer, without its output layer."""
    own = {name: value for name, value in whole.state_dict().items() if not name.startswith(("norm_out", "proj_out"))}
    return {**{f"{prefix}{name}": value.clone() for name, value in own.items()}, **head}


def write(folder: Path, state: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}), encoding="utf-8")
    return folder


def by_hand(state: dict[str, Tensor], latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """One logit of blocks with two streams, by their formulas over the names in the checkpoint."""
    embeds, mask, pooled = conditioning.prompt_embeds, conditioning.prompt_mask, conditioning.pooled
    assert embeds is not None and mask is not None and pooled is not None

    def lin(name: str, x: Tensor) -> Tensor:
        return x @ state[f"backbone.{name}.weight"].T + state[f"backbone.{name}.bias"]

    def norm(x: Tensor, name: str | None = None) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x if name is None else x * state[f"backbone.{name}.weight"] + state[f"backbone.{name}.bias"]

    def waves(steps: Tensor) -> Tensor:
        angles = steps[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        return torch.cat([angles.cos(), angles.sin()], -1)

    def twice(name: str, x: Tensor, first: str = "linear_1", second: str = "linear_2") -> Tensor:
        return lin(f"{name}.{second}", functional.silu(lin(f"{name}.{first}", x)))

    def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in (q, k, v))
        logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -math.inf)
        return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def rms(x: Tensor, name: str) -> Tensor:
        x = x.unflatten(-1, (2, -1))
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"backbone.{name}.weight"]
        return x.flatten(-2)

    def rotated(x: Tensor, grid: Tensor) -> Tensor:
        parts, begin, x = [], 0, x.unflatten(-1, (2, -1))
        for axis, size in enumerate(ROPE):
            part, angles = x[..., begin : begin + size], grid[:, axis : axis + 1]
            angles = (angles / 256.0 ** (torch.arange(0, size, 2) / size))[None, :, None]  # (1, N, 1, size / 2)
            even, odd = part[..., ::2], part[..., 1::2]
            turned = [even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()]
            parts.append(torch.stack(turned, -1).flatten(-2))
            begin += size
        return torch.cat(parts, -1).flatten(-2)

    steps = torch.tensor([int(value * 1000) for value in sigma])  # in float32, as the authors' sampler has it
    time = twice("time_text_embed.timestep_embedder", waves(steps))
    time = time + twice("time_text_embed.text_embedder", pooled)
    kernel = state["backbone.x_embedder.proj.weight"]
    video = functional.conv3d(latents, kernel, state["backbone.x_embedder.proj.bias"], stride=kernel.shape[2:])
    sizes = video.shape[2:]
    video = video.flatten(2).mT
    grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).float()

    refine = "context_embedder"
    mean = (embeds * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    own_time = twice(f"{refine}.time_text_embed.timestep_embedder", waves(steps))
    own_time = functional.silu(own_time + twice(f"{refine}.time_text_embed.text_embedder", mean))
    text, counts = lin(f"{refine}.proj_in", embeds), mask.bool()
    pairs = (counts[:, None] & counts[:, :, None])[:, None].clone()
    pairs[..., 0] = True
    for number in range(REFINERS):
        name = f"{refine}.token_refiner.refiner_blocks.{number}"
        gates = lin(f"{name}.norm_out.linear", own_time)[:, None].chunk(2, -1)
        x = norm(text, f"{name}.norm1")
        read = attend(*(lin(f"{name}.attn.to_{part}", x) for part in "qkv"), pairs)
        text = text + lin(f"{name}.attn.to_out.0", read) * gates[0]
        inner = functional.silu(lin(f"{name}.ff.net.0.proj", norm(text, f"{name}.norm2")))
        text = text + lin(f"{name}.ff.net.2", inner) * gates[1]

    seen = torch.cat([torch.ones(len(video), video.shape[1]), mask], 1).bool()[:, None, None]
    for number in range(2):
        name = f"transformer_blocks.{number}"
        streams = {"": video, "_context": text}
        changes = {
            kind: lin(f"{name}.norm1{kind}.linear", functional.silu(time))[:, None].chunk(6, -1) for kind in streams
        }
        inputs = {kind: norm(x) * (1 + changes[kind][1]) + changes[kind][0] for kind, x in streams.items()}
        q, k = (
            torch.cat(
                [
                    rotated(rms(lin(f"{name}.attn.to_{part}", inputs[""]), f"{name}.attn.norm_{part}"), grid),
                    rms(lin(f"{name}.attn.add_{part}_proj", inputs["_context"]), f"{name}.attn.norm_added_{part}"),
                ],
                1,
            )
            for part in "qk"
        )
        v = torch.cat([lin(f"{name}.attn.to_v", inputs[""]), lin(f"{name}.attn.add_v_proj", inputs["_context"])], 1)
        read = attend(q, k, v, seen)
        outs = {
            "": lin(f"{name}.attn.to_out.0", read[:, : video.shape[1]]),
            "_context": lin(f"{name}.attn.to_add_out", read[:, video.shape[1] :]),
        }
        for kind in streams:
            _, _, gate, shift, scale, wide_gate = changes[kind]
            x = streams[kind] + outs[kind] * gate
            inner = lin(f"{name}.ff{kind}.net.0.proj", norm(x) * (1 + scale) + shift)
            streams[kind] = x + wide_gate * lin(f"{name}.ff{kind}.net.2", functional.gelu(inner, approximate="tanh"))
        video, text = streams[""], streams["_context"]
    return head_by_hand(state, video)


def head_by_hand(state: dict[str, Tensor], video: Tensor) -> Tensor:
    attention = "reward_head.attention.0"
    query = state["reward_head.query.weight"].expand(len(video), -1, -1)
    parts = zip(
        (query, video, video),
        state[f"{attention}.in_proj_weight"].chunk(3),
        state[f"{attention}.in_proj_bias"].chunk(3),
        strict=True,
    )
    q, k, v = ((x @ weight.T + bias).unflatten(-1, (2, -1)).transpose(1, 2) for x, weight, bias in parts)
    read = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    read = (read @ state[f"{attention}.out_proj.weight"].T + state[f"{attention}.out_proj.bias"]).mean(1)
    inner = functional.silu(read @ state["reward_head.mlp.0.weight"].T + state["reward_head.mlp.0.bias"])
    return inner @ state["reward_head.mlp.3.weight"].T
