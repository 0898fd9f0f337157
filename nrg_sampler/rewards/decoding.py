"""From the clean latents of a pipeline to frames: all of them, or a few with the latents that their decoding needs.

A decoder of videos looks beyond one latent frame. A causal one keeps what it saw of the frames before, and takes the
first latent frame for a picture of its own; so a frame is decoded together with some of those before it, its context.
Where the decoder is not causal, those after it belong to the context too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nrg_sampler.rewards.latent_space import denormalised

HOOK = "_hf_hook"  # of accelerate, by which a pipeline offloads its parts


class Decoder(nn.Module):
    """Normalised latents to frames in ``[0, 1]``.

    Args:
        vae: The autoencoder.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clean: Tensor) -> Tensor:
        """Decode clean latents ``(B, C, T, H, W)``.

        An offloaded autoencoder rests where it is: its weights are at hand for this call, and what would move it, and
        the denoiser out of its way, stays out of it.
        """
        with unhooked(self.vae):
            return decoded(self.vae, clean)


@contextmanager
def unhooked(vae: Any) -> Iterator[None]:
    """Keep an autoencoder where it is, if its pipeline offloads it."""
    hook = vars(vae).pop(HOOK, None)
    try:
        yield
    finally:
        if hook is not None:
            setattr(vae, HOOK, hook)


def decoded(vae: Any, clean: Tensor) -> Tensor:
    """Decode clean latents ``(B, C, T, H, W)`` of a pipeline to frames ``(B, 3, T', H', W')`` in [0, 1]."""
    weight = next(vae.parameters())
    latents = denormalised(vae, clean).to(weight.device, weight.dtype)
    if decodes_pictures(vae):
        pictures = latents.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        frames: Tensor = vae.decode(pictures, return_dict=False)[0].unflatten(0, (len(clean), -1)).transpose(1, 2)
    else:
        # Some decoders of LTX take the noise level of the latents, here 0, as its pipeline does by default.
        conditioned = getattr(vae.config, "timestep_conditioning", False)
        at_zero = {"temb": latents.new_zeros(len(latents))} if conditioned else {}
        frames = vae.decode(latents, return_dict=False, **at_zero)[0]
    return (frames.to(clean.dtype) / 2 + 0.5).clamp(0, 1)


def decodes_pictures(vae: nn.Module) -> bool:
    """Return whether it is the autoencoder of an image model, whose convolutions have no time."""
    convolutions = [module for module in vae.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    return bool(convolutions) and not any(isinstance(module, nn.Conv3d) for module in convolutions)


def channels_of(vae: Any) -> int | None:
    """Return how many channels its latents have, if its config says it."""
    config = getattr(vae, "config", None)
    return getattr(config, "z_dim", getattr(config, "latent_channels", None))


def frames_a_latent(vae: Any) -> int:
    """Return how many frames of the video one latent frame stands for, beyond the first."""
    own = vars(vae).get("temporal_compression_ratio")
    config = getattr(vae, "config", None)
    names = ("temporal_compression_ratio", "scale_factor_temporal")
    return int(own or next((value for name in names if (value := getattr(config, name, None))), 1))


@dataclass(frozen=True)
class Stretch:
    """Latent frames that are decoded at once.

    Args:
        start: The first of them, where the context begins.
        stop: The first beyond.
        shown: Those to look at.
    """

    start: int
    stop: int
    shown: tuple[int, ...]

    def cut(self, clean: Tensor) -> Tensor:
        """Cut latents ``(B, C, T, H, W)``; no gradient reaches the context before the first frame that is shown.

        A causal decoder then keeps nothing of what it computed of the context.
        """
        first = self.shown[0]
        return torch.cat([clean[:, :, self.start : first].detach(), clean[:, :, first : self.stop]], dim=2)

    def pick(self, frames: Tensor) -> Tensor:
        """Pick the last frame of each latent frame that is shown from what was decoded, ``(B, 3, T', H', W')``."""
        latents, count = self.stop - self.start, frames.shape[2]
        places = [(index - self.start) * (count - 1) // max(1, latents - 1) for index in self.shown]
        return frames[:, :, [count - 1] if latents == 1 else places]


def stretches(chosen: range, count: int, vae: nn.Module, context: int) -> Iterator[Stretch]:
    """Yield what is to be decoded of a clip.

    Args:
        chosen: The latent frames to look at.
        count: How many latent frames there are.
        vae: Whose decoder it is.
        context: Latent frames that are decoded with each, before it and, if the decoder is not causal, after it.
    """
    if decodes_pictures(vae):
        context = 0
    after = 0 if getattr(getattr(vae, "config", None), "decoder_causal", True) else context
    together: list[int] = []
    for index in chosen:
        if together and index - together[-1] > context + after + 1:
            yield _stretch(together, count, context, after)
            together = []
        together.append(index)
    yield _stretch(together, count, context, after)


def _stretch(shown: list[int], count: int, before: int, after: int) -> Stretch:
    return Stretch(max(0, shown[0] - before), min(count, shown[-1] + 1 + after), tuple(shown))


def frozen_call(module: Any, tensor: Tensor, *, half: bool = False, **others: Any) -> Any:
    """Call a module with its weights detached: only the input is differentiated, and the module stays as it is.

    Weights that rest on another device are brought to that of ``tensor`` for the call, and for the backward pass as
    long as it needs them; for autocast with ``half`` the large ones in the bfloat16 that it would make of them.
    """
    if not isinstance(module, nn.Module):
        return module(tensor, **others)
    named = (*module.named_parameters(), *module.named_buffers())
    weights = {}
    for name, weight in named:
        narrow = half and weight.dtype == torch.float32 and weight.ndim > 1
        rested = weight.detach().to(torch.bfloat16) if narrow else weight.detach()
        weights[name] = rested.to(tensor.device)
    return functional_call(module, weights, (tensor,), others)
