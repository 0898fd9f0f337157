r"""A reward on pixels, for those who have no latent one: through the predicted clean latents and the VAE.

.. math:: r(x_\sigma) = \mathrm{judge}(\mathrm{decode}(\hat x_0)), \qquad \hat x_0 = x_\sigma - \sigma v

It pays for a decoder's backward pass at every guided step and shows blurred clips to a judge of finished ones, so a
latent reward trained on noisy latents is both cheaper and better founded where there is one.

References:
    [1] Liu et al., 2025, arXiv:2501.13918, Table 7 (what a clean reward does there).
    [2] Chung et al., 2022, arXiv:2209.14687 (guidance through the predicted clean sample).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from nrg_sampler.flow import clean_from, expand
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.frame_scorer import FrameScorer, Wanted
from nrg_sampler.rewards.latent_space import denormalised


class PixelReward(nn.Module):
    r"""Score noisy latents by a judge's score of the predicted frames.

    The velocity is taken as constant, so that the video model is not differentiated (skip-gradient). What is left of
    :math:`\partial \hat x_0 / \partial x_\sigma` is then the identity, which does not fade toward pure noise. With
    ``noise_aware`` the gradient is multiplied by the Jacobian of the exact :math:`E[x_0 | x_\sigma]` for latents of
    unit variance, :math:`\alpha / (\alpha^2 + \sigma^2)` with :math:`\alpha = 1 - \sigma`.

    Needs the velocity: ``guided_velocity`` and ``attach`` hand it over. Without gradients, at sigma 0, it scores
    finished latents; ``score_frames`` scores a clip.

    What the judge is called with is decided here, once, by the names of its parameters: ``judge(frames)``,
    ``judge(frames, prompts)`` or ``judge(frames, prompts, fps)``. ``prompts`` is one text for each clip; ``fps`` the
    rate of the frames that are shown, ``None`` where nobody knows it. Where such a parameter has a default, the judge
    is called without what is not known.

    Args:
        judge: Maps frames ``(B, 3, T, H, W)`` in ``[0, 1]`` to raw numbers ``(B, axes)``; differentiable if it is to
            guide.
        vae: The pipeline's VAE, with ``decode`` and the statistics of its latents in its config.
        axes: Names of the axes, in the order of the judge's columns.
        tile: Side of the squares, in latent pixels, that are decoded one after the other; ``None`` decodes at once.
        margin: Latent pixels of context around each square, decoded and cut away. Tiling changes nothing if the
            decoder looks no further than that.
        checkpointing: Keep no activations of the decoder, and compute each square's again in the backward pass.
        noise_aware: Let the gradient fade toward pure noise.
        mean: Mean of each raw reward over the base model's samples.
        std: Its standard deviation there.
        recommended_scale: The default guidance strength.

    Attributes:
        needs_prompts: Whether the judge cannot be called without prompts.
        source: The name or names that it was made from, as :func:`nrg_sampler.rewards.by_name.reward_for` reads them.

    Raises:
        ValueError: If ``tile`` or ``margin`` is out of range.
    """

    needs_velocity = True
    source: str | None = None

    def __init__(
        self,
        judge: FrameScorer,
        vae: nn.Module,
        axes: Sequence[str],
        *,
        tile: int | None = 16,
        margin: int = 4,
        checkpointing: bool = True,
        noise_aware: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        recommended_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if tile is not None and tile < 1:
            raise ValueError(f"Expected `tile` to be 1 or more latent pixels, or None for no tiles, but got {tile}.")
        if margin < 0:
            raise ValueError(f"Expected `margin` to be 0 or more latent pixels, but got {margin}.")
        self.judge, self.decoder = judge, _Decoder(vae)
        self._wanted = Wanted.by(judge)
        self.needs_prompts = self._wanted.needs_prompts
        self.axes = tuple(axes)
        self.tile, self.margin = tile, margin
        self.checkpointing, self.noise_aware = checkpointing, noise_aware
        self.mean = tuple(mean or (0.0,) * len(self.axes))
        self.std = tuple(std or (1.0,) * len(self.axes))
        self.recommended_scale = recommended_scale

    @property
    def device(self) -> torch.device:
        """Where it computes; diffusers queries every component of a pipeline."""
        return next(self.decoder.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the VAE's weights."""
        return next(self.decoder.vae.parameters()).dtype

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline whose latents this VAE does not decode.

        Raises:
            ValueError: If the number of channels differs, or the latents are normalised in a way unknown here.
        """
        if any(isinstance(part, nn.BatchNorm2d) for part in self.decoder.vae.children()):
            raise ValueError(
                f"Expected a VAE whose latents are decoded as they are or by channel, but {type(pipe).__name__} "
                "normalises patches of them by a batch norm; pass a reward on latents."
            )
        own = _channels(self.decoder.vae)
        theirs = _channels(getattr(pipe, "vae", None))
        if own != theirs:
            raise ValueError(
                f"Expected a pipeline with {own} latent channels, as the VAE of this reward has, but "
                f"{type(pipe).__name__} has {theirs}; give the reward the VAE of the pipeline."
            )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Score latents.

        Args:
            latents: Noisy latents, normalised as the pipeline has them, shape ``(B, C, T, H, W)``.
            sigma: Noise level in ``[0, 1]``, shape ``(B,)``.
            conditioning: Its ``velocity``, shape of ``latents``, not needed where sigma is 0; its ``prompts`` and
                ``fps`` for a judge that reads them.

        Returns:
            Raw rewards, shape ``(B, axes)``.

        Raises:
            ValueError: If the velocity or the prompts are missing or the judge returns another shape.
        """
        frames = self.frames(self._predicted_clean(latents, sigma, conditioning.velocity))
        rate = None if conditioning.fps is None else conditioning.fps / conditioning.frame_stride
        return self.score_frames(frames, conditioning.prompts, rate)

    def frames(self, clean: Tensor) -> Tensor:
        """Decode normalised clean latents ``(B, C, T, H, W)`` to frames ``(B, 3, T', H', W')`` in ``[0, 1]``."""
        if self.tile is None:
            return self._decode(clean)
        rows = [
            torch.cat([self._decode_square(clean, down, across) for across in self._spans(clean.shape[-1])], dim=-1)
            for down in self._spans(clean.shape[-2])
        ]
        return torch.cat(rows, dim=-2)

    def score_frames(self, frames: Tensor, prompts: Sequence[str] | None = None, fps: float | None = None) -> Tensor:
        """Score frames.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One text for each clip, or a single one for all, for a judge that reads them.
            fps: Frames per second.

        Returns:
            Shape ``(B, axes)``.

        Raises:
            ValueError: If the judge returns another shape, or prompts are missing or of another number.
        """
        raw = _frozen_call(self.judge, frames, **self._wanted.arguments(len(frames), prompts, fps))
        expected = (len(frames), len(self.axes))
        if not isinstance(raw, Tensor) or raw.shape != expected:
            got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise ValueError(
                f"Expected the judge to return shape {expected}, one column per axis ({', '.join(self.axes)}), "
                f"but got {got}."
            )
        return raw

    def _predicted_clean(self, latents: Tensor, sigma: Tensor, velocity: Tensor | None) -> Tensor:
        if velocity is None:
            if bool((sigma > 0).any()):
                raise ValueError(
                    "Expected the velocity of the step in the conditioning of a pixel reward, but got none; guide "
                    "with `attach` or `guided_velocity`, or pass `Conditioning(velocity=...)`."
                )
            return latents
        clean = clean_from(latents, velocity.detach().to(latents.dtype), sigma)
        if not self.noise_aware:
            return clean
        level = expand(sigma, latents)
        jacobian = (1 - level) / ((1 - level) ** 2 + level**2)
        return clean.detach() + jacobian * (latents - latents.detach())  # the value as it is, the gradient scaled

    def _spans(self, size: int) -> Iterator[tuple[int, int]]:
        assert self.tile is not None
        for start in range(0, size, self.tile):
            yield start, min(start + self.tile, size)

    def _decode_square(self, clean: Tensor, down: tuple[int, int], across: tuple[int, int]) -> Tensor:
        (top, bottom), (left, right) = down, across
        above, before = max(0, top - self.margin), max(0, left - self.margin)
        square = clean[..., above : bottom + self.margin, before : right + self.margin]
        decoded = self._decode(square)
        factor = decoded.shape[-1] // square.shape[-1]
        rows = slice((top - above) * factor, (bottom - above) * factor)
        columns = slice((left - before) * factor, (right - before) * factor)
        return decoded[..., rows, columns]

    def _decode(self, clean: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled() and clean.requires_grad:
            kept: Tensor = checkpoint(_frozen_call, self.decoder, clean, use_reentrant=False)
            return kept
        decoded: Tensor = _frozen_call(self.decoder, clean)
        return decoded


class _Decoder(nn.Module):
    """Normalised latents to frames in ``[0, 1]``."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, clean: Tensor) -> Tensor:
        return decoded(self.vae, clean)


def decoded(vae: Any, clean: Tensor) -> Tensor:
    """Decode clean latents ``(B, C, T, H, W)`` of a pipeline to frames ``(B, 3, T', H', W')`` in [0, 1]."""
    weight = next(vae.parameters())
    latents = denormalised(vae, clean).to(weight.device, weight.dtype)
    if _decodes_pictures(vae):
        pictures = latents.transpose(1, 2).flatten(0, 1)  # (B * T, C, H, W)
        frames: Tensor = vae.decode(pictures, return_dict=False)[0].unflatten(0, (len(clean), -1)).transpose(1, 2)
    else:
        # Some decoders of LTX take the noise level of the latents, here 0, as its pipeline does by default.
        conditioned = getattr(vae.config, "timestep_conditioning", False)
        at_zero = {"temb": latents.new_zeros(len(latents))} if conditioned else {}
        frames = vae.decode(latents, return_dict=False, **at_zero)[0]
    return (frames.to(clean.dtype) / 2 + 0.5).clamp(0, 1)


def _decodes_pictures(vae: nn.Module) -> bool:
    """Whether it is the autoencoder of an image model, whose convolutions have no time."""
    convolutions = [module for module in vae.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))]
    return bool(convolutions) and not any(isinstance(module, nn.Conv3d) for module in convolutions)


def _channels(vae: Any) -> int | None:
    config = getattr(vae, "config", None)
    return getattr(config, "z_dim", getattr(config, "latent_channels", None))


def _frozen_call(module: Any, tensor: Tensor, **others: Any) -> Any:
    """Call a module with its weights detached: only the input is differentiated, and the module stays as it is."""
    if not isinstance(module, nn.Module):
        return module(tensor, **others)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, (tensor,), others)
