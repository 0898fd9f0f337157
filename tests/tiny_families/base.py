"""What the tiny pipelines of all families are built of."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from tiny import schedulers
from torch import Tensor

Unpack: TypeAlias = Callable[[Tensor, dict[str, Any], float], Tensor]

DIM = 16  # numbers per prompt token
TOKENS = 5
VIDEO = {"height": 32, "width": 48, "num_frames": 5}
IMAGE = {"height": 32, "width": 48}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
BOTH = ("prompt_embeds", "negative_prompt_embeds")
BOTH_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(*names: str, shape: tuple[int, ...] = (1, TOKENS, DIM)) -> dict[str, Any]:
    return {name: rand(*shape, seed=seed) for seed, name in enumerate(names, start=1)}


def masks(*names: str) -> dict[str, Any]:
    return {name: torch.ones(1, TOKENS, dtype=torch.int64) for name in names}


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (48, 32), (200, 40, 40))


PROMPTS = prompts(*BOTH)
MASKED_PROMPTS = {**PROMPTS, **masks(*BOTH_MASKS)}


def as_they_are(latents: Tensor, seen: dict[str, Any], sigma: float) -> Tensor:
    return latents


@dataclass
class Tiny:
    """A pipeline, how to call it and, written a second time, how its latents become ``(B, C, T, H, W)``."""

    pipe: Any
    arguments: dict[str, Any]
    unpack: Unpack = as_they_are
    size: dict[str, Any] = field(default_factory=dict)

    def sample(self, **changes: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 3, "output_type": "latent", "return_dict": False, "generator": generator}
        return self.pipe(**{**settings, **self.size, **self.arguments, **changes})[0]


@dataclass(frozen=True)
class Blueprint:
    """How a tiny pipeline is built, as data; calling it builds a new one.

    Args:
        pipeline: Name of its class in diffusers.
        transformer: Builds its transformer.
        arguments: Of the call. What is callable is called; the rest is copied.
        size: Of what is sampled.
        unpack: What turns latents, given what the transformer last saw and the noise level, into ``(B, C, T, H, W)``.
        components: Its other parts but for an Euler scheduler, built likewise.
        finish: What is left to be set on the finished pipeline.
    """

    pipeline: str
    transformer: Callable[[], Any]
    arguments: Mapping[str, Any]
    size: Mapping[str, Any]
    unpack: Unpack = as_they_are
    components: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Any], None] | None = None

    def __call__(self) -> Tiny:
        pipe = pipeline(self.pipeline, transformer=self.transformer(), **_made(self.components))
        if self.finish:
            self.finish(pipe)
        return Tiny(pipe, _made(self.arguments), self.unpack, dict(self.size))


def _made(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value() if callable(value) else copy.deepcopy(value) for name, value in values.items()}


def pipeline(name: str, **components: Any) -> Any:
    """Build a pipeline whose components are ``None`` unless given, save for an Euler scheduler."""
    import diffusers

    kind = getattr(diffusers, name)
    parameters = inspect.signature(kind.__init__).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty][1:]
    pipe = kind(**{**dict.fromkeys(required), "scheduler": schedulers()["euler"], **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler(name: str) -> Callable[[], Any]:
    return lambda: schedulers()[name]


def transformer(name: str, **config: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    return getattr(diffusers, name)(**config).eval()


def tiny(name: str, **config: Any) -> Callable[[], Any]:
    """Return what builds a transformer of random weights, always the same."""
    return partial(transformer, name, **config)


def guider() -> Any:
    """Build the classifier-free guidance of pipelines that take it as a component."""
    from diffusers import ClassifierFreeGuidance

    return ClassifierFreeGuidance(guidance_scale=4.0)


class ConfigOnly(torch.nn.Module):
    """Stands where a pipeline reads an autoencoder's config and, without a picture, nothing else."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        for name in ("spatial_compression_ratio", "temporal_compression_ratio"):
            setattr(self, name, config.get(name))
