"""Pipelines that are called with text, and a reward that reads it."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from tiny import schedulers, tiny_components
from tiny_families import TINY
from tiny_families.base import rand
from tiny_families.full import full_flux, full_ltx


class ReadsText:
    """Reward latents whose mean follows the length of their text, and remember what was read."""

    axes = ("length",)
    needs_prompts = True

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...] | None] = []
        self.rates: list[float | None] = []

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: Any) -> torch.Tensor:
        self.seen.append(conditioning.prompts)
        self.rates.append(conditioning.fps)
        if conditioning.prompts is None:
            return latents.mean(dim=(1, 2, 3, 4))[:, None]
        assert len(conditioning.prompts) == len(latents)
        lengths = torch.tensor([len(text) for text in conditioning.prompts]).to(latents)
        return ((1 - sigma) * latents.mean(dim=(1, 2, 3, 4)) * lengths)[:, None]


class MayReadText(ReadsText):
    """The same, for which text is no must."""

    needs_prompts = False


def tiny_text_wan() -> Any:
    from diffusers import WanPipeline

    return WanPipeline(**tiny_components(), scheduler=schedulers()["euler"])


def of_text(text: str, *shape: int) -> torch.Tensor:
    return rand(*shape, seed=zlib.crc32(text.encode()))


def with_encoder(name: str, *shapes: tuple[int, ...]) -> Any:
    """Build the tiny pipeline of a family with random features of each text, repeated prompt by prompt."""
    tiny = TINY[name]()

    def encode_prompt(prompt: Any = None, prompt_embeds: Any = None, **others: Any) -> tuple[Any, ...]:
        given = [value for key, value in others.items() if key.endswith("prompt_embeds") and value is not None]
        if prompt_embeds is not None:
            return _in_order(name, prompt_embeds, given)
        texts = [prompt] if isinstance(prompt, str) else prompt
        each = others.get("num_videos_per_prompt") or others.get("num_images_per_prompt") or 1
        features = [
            torch.stack([of_text(text, *shape) for text in texts]).repeat_interleave(each, dim=0) for shape in shapes
        ]
        return _in_order(name, features[0], features[1:])

    tiny.pipe.encode_prompt = encode_prompt
    return tiny.pipe


def _in_order(name: str, embeds: torch.Tensor, others: list[torch.Tensor]) -> tuple[Any, ...]:
    if name == "HunyuanVideo":
        return embeds, others[0], torch.ones(embeds.shape[:2], dtype=torch.int64)
    return embeds, embeds + 1, others[0], others[0] + 1


PIPELINES = {
    "Wan": (tiny_text_wan, {"height": 16, "width": 16, "num_frames": 3, "max_sequence_length": 8}),
    "LTX": (full_ltx, {"height": 64, "width": 96, "num_frames": 9, "max_sequence_length": 8}),
    "FLUX.1": (full_flux, {"height": 32, "width": 48, "max_sequence_length": 8}),
    "Stable Diffusion 3": (lambda: with_encoder("Stable Diffusion 3", (5, 16), (8,)), {"height": 32, "width": 48}),
    "HunyuanVideo": (
        lambda: with_encoder("HunyuanVideo", (5, 16), (8,)),
        {"height": 32, "width": 48, "num_frames": 5},
    ),
}
COUNTS = {"FLUX.1": "num_images_per_prompt", "Stable Diffusion 3": "num_images_per_prompt"}


def built(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a pipeline and what it is called with besides a prompt."""
    make, size = PIPELINES[name]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**size, "num_inference_steps": 2, "output_type": "latent", "return_dict": False}


def run(pipe: Any, settings: dict[str, Any], *args: Any, **changes: Any) -> torch.Tensor:
    latents: torch.Tensor = pipe(*args, **{**settings, "generator": torch.Generator().manual_seed(0), **changes})[0]
    return latents
