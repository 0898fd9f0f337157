"""Encode clips and prompts with a pipeline's own VAE and text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nrg_sampler.hosts.families import family_of, require_flow
from nrg_sampler.hosts.vocabulary import is_closed, require_known_words
from nrg_sampler.rewards.latent_space import normalised
from nrg_sampler.training.cache import LatentCache, clip_name, half, prompt_name
from nrg_sampler.training.decoding import ClipSettings, UnreadableClipError, read_clip
from nrg_sampler.training.preferences import PreferenceTable

SHARD = 32  # tensors; what an interruption costs at most


class PairEncoder:
    """Encode the clips and prompts of a preference table.

    Args:
        pipe: A pipeline with a Wan transformer.
        settings: How files become clips.
        max_sequence_length: Tokens of a prompt at most.

    Raises:
        ValueError: If the pipeline is not supported, or cannot encode clips of that size and length.
    """

    def __init__(self, pipe: Any, settings: ClipSettings, max_sequence_length: int = 512) -> None:
        """Check that the pipeline can encode such clips."""
        from diffusers import WanTransformer3DModel

        family_of(type(pipe))
        require_flow(pipe.scheduler)
        self.transformer: Any = getattr(pipe, "transformer", None) or getattr(pipe, "transformer_2", None)
        if not isinstance(self.transformer, WanTransformer3DModel):
            raise ValueError(
                f"Expected a pipeline with a WanTransformer3DModel, but {type(pipe).__name__} has "
                f"{type(self.transformer).__name__}; train the reward on a Wan pipeline."
            )
        self.pipe, self.settings, self.max_sequence_length = pipe, settings, max_sequence_length
        self._check_sizes()

    def _check_sizes(self) -> None:
        in_time, in_space = self.pipe.vae_scale_factor_temporal, self.pipe.vae_scale_factor_spatial
        _, *patch = self.transformer.config.patch_size
        for name, multiple in (("height", in_space * patch[0]), ("width", in_space * patch[1])):
            value = getattr(self.settings, name)
            if value % multiple:
                raise ValueError(f"Expected `{name}` to be a multiple of {multiple} for this model, but got {value}.")
        if (self.settings.num_frames - 1) % in_time:
            raise ValueError(
                f"Expected `num_frames` to be 1 more than a multiple of {in_time} for this model, but got "
                f"{self.settings.num_frames}."
            )

    @torch.no_grad()
    def clip(self, pixels: Tensor) -> Tensor:
        """Encode a clip ``(3, T, H, W)`` in ``[0, 1]`` to normalised latents ``(C, T', H', W')``."""
        vae = self.pipe.vae
        pixels = (pixels[None] * 2 - 1).to(vae.device, vae.dtype)
        return normalised(vae, vae.encode(pixels).latent_dist.mode())[0]

    @torch.no_grad()
    def prompt(self, text: str) -> Tensor:
        """Encode a prompt to features ``(L, D)``, without padding.

        Raises:
            ValueError: If a small model does not know its words.
        """
        if is_closed(self.pipe.tokenizer):
            require_known_words(self.pipe.tokenizer, [text])
        length = {"max_sequence_length": self.max_sequence_length}
        taken = inspect.signature(self.pipe.encode_prompt).parameters
        features: Tensor = self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, **{name: value for name, value in length.items() if name in taken}
        )[0][0]
        real = (features != 0).any(dim=-1).nonzero()
        return features[: int(real.max()) + 1 if len(real) else 1]

    def fill(self, cache: LatentCache, table: PreferenceTable) -> Iterator[int]:
        """Encode what the cache lacks, a shard at a time; pairs that turn out unusable join the bad rows.

        Yields:
            How many clips and prompts are done.
        """
        names = {file: clip_name(file) for pair in table.pairs for file in (pair.first, pair.second)}
        prompts = {pair.prompt: prompt_name(pair.prompt) for pair in table.pairs}
        unusable: dict[Any, str] = {}
        waiting: dict[str, Tensor] = {}
        todo: list[tuple[Any, str, Callable[[Any], Tensor]]] = [
            *((prompt, name, self.prompt) for prompt, name in prompts.items()),
            *((file, name, lambda file: self.clip(read_clip(file, self.settings))) for file, name in names.items()),
        ]
        for count, (source, name, encode) in enumerate(todo, start=1):
            if name not in cache and name not in waiting:
                try:
                    waiting[name] = half(encode(source))
                except UnreadableClipError as reason:
                    unusable[source] = str(reason)
                except ValueError as reason:
                    if source not in prompts:
                        raise
                    unusable[source] = f"has a prompt with words outside the model's vocabulary ({reason})"
            if len(waiting) >= SHARD or (waiting and count == len(todo)):
                cache.add(waiting)
                waiting = {}
            yield count
        table.keep(
            lambda pair: next((unusable[x] for x in (pair.first, pair.second, pair.prompt) if x in unusable), None)
        )
