r"""A reward on pixels, for those who have no latent one: through the predicted clean latents and the VAE.

.. math:: r(x_\sigma) = \mathrm{judge}(\mathrm{decode}(\hat x_0)), \qquad \hat x_0 = x_\sigma - \sigma v

It pays for a decoder's backward pass at every guided step and shows blurred clips to a judge of finished ones, so a
latent reward trained on noisy latents is both cheaper and better founded where there is one.

References:
    [1] Liu et al., 2025, arXiv:2501.13918, Table 7 (what a clean reward does there).
    [2] Chung et al., 2022, arXiv:2209.14687 (guidance through the predicted clean sample).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nrg_sampler.flow import clean_from, expand
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.decoding import Decoder, channels_of, frames_a_latent, frozen_call, stretches
from nrg_sampler.rewards.frame_scorer import FrameScorer, Wanted
from nrg_sampler.rewards.frames import ALL, read_frames
from nrg_sampler.rewards.pixel_options import PixelOptions
from nrg_sampler.rewards.tiny_vae import load_tiny


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
        context: Latent frames that are decoded with one to look at where only a few are, see
            :mod:`nrg_sampler.rewards.decoding`. The decoder is exact from as many as it looks back.
        checkpointing: Keep no activations of the decoder, and compute each square's again in the backward pass.
        noise_aware: Let the gradient fade toward pure noise.
        mean: Mean of each raw reward over the base model's samples.
        std: Its standard deviation there.
        recommended_scale: The default guidance strength.
        recommended_frames: Which latent frames the judge looks at in a step, where the guidance leaves it open, as
            ``RewardGuidance(frames=...)`` names them. Of each it sees one frame of the video, the last.

    Attributes:
        needs_prompts: Whether the judge cannot be called without prompts.
        source: The name or names that it was made from, as :func:`nrg_sampler.rewards.by_name.reward_for` reads them.

    Raises:
        ValueError: If ``tile``, ``margin``, ``context`` or ``recommended_frames`` is out of range.
    """

    needs_velocity = True
    chooses_frames = True
    source: str | None = None

    def __init__(
        self,
        judge: FrameScorer,
        vae: nn.Module,
        axes: Sequence[str],
        *,
        tile: int | None = 16,
        margin: int = 4,
        context: int = 4,
        checkpointing: bool = True,
        noise_aware: bool = True,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        recommended_scale: float = 1.0,
        recommended_frames: str = ALL,
    ) -> None:
        super().__init__()
        if tile is not None and tile < 1:
            raise ValueError(f"Expected `tile` to be 1 or more latent pixels, or None for no tiles, but got {tile}.")
        if margin < 0:
            raise ValueError(f"Expected `margin` to be 0 or more latent pixels, but got {margin}.")
        if context < 0:
            raise ValueError(f"Expected `context` to be 0 or more latent frames, but got {context}.")
        self.judge, self.decoder = judge, Decoder(vae)
        self._wanted = Wanted.by(judge)
        self.needs_prompts = self._wanted.needs_prompts
        self.axes = tuple(axes)
        self.tile, self.margin, self.context = tile, margin, context
        self.checkpointing, self.noise_aware = checkpointing, noise_aware
        self.mean = tuple(mean or (0.0,) * len(self.axes))
        self.std = tuple(std or (1.0,) * len(self.axes))
        self.recommended_scale = recommended_scale
        self.options, self.guiding = PixelOptions(), self.decoder
        self._others: dict[PixelOptions, PixelReward] = {}
        self.recommended_frames = read_frames("recommended_frames", recommended_frames) or ALL

    @property
    def device(self) -> torch.device:
        """Where the VAE is; diffusers queries every component of a pipeline."""
        return next(self.decoder.vae.parameters()).device

    @property
    def offloaded(self) -> bool:
        """Whether its judge rests in the processor's memory."""
        return self.options.offload

    @property
    def dtype(self) -> torch.dtype:
        """Of the VAE's weights."""
        return next(self.decoder.vae.parameters()).dtype

    def computed_with(self, options: PixelOptions) -> PixelReward:
        """Return the same reward, computed in another way; its judge rests in the processor's memory if offloaded.

        Raises:
            ValueError: If there is no such small autoencoder, or it decodes other latents.
        """
        if options == self.options:
            return self
        if options not in self._others:
            other = copy.copy(self)
            other._modules = dict(self._modules)  # what a module is set to is written there
            other.options = options
            other.guiding = (
                Decoder(load_tiny(options.tiny_vae, self.decoder.vae)) if options.tiny_vae else self.decoder
            )
            self._others[options] = other
        if options.offload and isinstance(self.judge, nn.Module):
            self.judge.to("cpu")
        return self._others[options]

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline whose latents this VAE does not decode.

        Raises:
            ValueError: If the number of channels differs, the latents are normalised in a way unknown here, or the
                weights of the VAE are not in memory.
        """
        if any(isinstance(part, nn.BatchNorm2d) for part in self.decoder.vae.children()):
            raise ValueError(
                f"Expected a VAE whose latents are decoded as they are or by channel, but {type(pipe).__name__} "
                "normalises patches of them by a batch norm; pass a reward on latents."
            )
        if any(weight.is_meta for weight in self.decoder.vae.parameters()):
            raise ValueError(
                f"Expected a VAE with its weights in memory, but {type(pipe).__name__} loads them piece by piece; "
                "offload it with `enable_model_cpu_offload()` instead."
            )
        own = channels_of(self.decoder.vae)
        theirs = channels_of(getattr(pipe, "vae", None))
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
                ``fps`` for a judge that reads them; its ``frames`` to look at a few only.

        Returns:
            Raw rewards, shape ``(B, axes)``.

        Raises:
            ValueError: If the velocity or the prompts are missing or the judge returns another shape.
        """
        chosen, velocity = conditioning.frames, conditioning.velocity
        decoder = self.decoder if velocity is None else self.guiding
        frames = self.frames(self._predicted_clean(latents, sigma, velocity), chosen, decoder)
        apart = 1 if chosen is None else chosen.step * frames_a_latent(self.decoder.vae)
        rate = None if conditioning.fps is None else conditioning.fps / (conditioning.frame_stride * apart)
        return self.score_frames(frames, conditioning.prompts, rate)

    def frames(self, clean: Tensor, chosen: range | None = None, decoder: Decoder | None = None) -> Tensor:
        """Decode latents.

        Args:
            clean: Normalised clean latents, shape ``(B, C, T, H, W)``.
            chosen: Latent frames to look at, of each of which the last frame is returned; by default all of all.
            decoder: By default that of the pipeline's VAE.

        Returns:
            Frames ``(B, 3, T', H', W')`` in ``[0, 1]``.
        """
        decoder = decoder or self.decoder
        if chosen is None or len(chosen) == clean.shape[2]:
            return self._decode_in_tiles(clean, decoder)
        parts = stretches(chosen, clean.shape[2], decoder.vae, self.context)
        return torch.cat([part.pick(self._decode_in_tiles(part.cut(clean), decoder)) for part in parts], dim=2)

    def _decode_in_tiles(self, clean: Tensor, decoder: Decoder) -> Tensor:
        if self.tile is None:
            return self._decode(clean, decoder)
        down, across = (list(self._spans(size)) for size in clean.shape[-2:])
        rows = [
            torch.cat([self._decode_square(clean, decoder, row, column) for column in across], dim=-1) for row in down
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
        with self._precision(frames.device):
            raw = frozen_call(
                self.judge, frames, half=self.options.half, **self._wanted.arguments(len(frames), prompts, fps)
            )
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

    def _decode_square(
        self, clean: Tensor, decoder: Decoder, down: tuple[int, int], across: tuple[int, int]
    ) -> Tensor:
        (top, bottom), (left, right) = down, across
        above, before = max(0, top - self.margin), max(0, left - self.margin)
        square = clean[..., above : bottom + self.margin, before : right + self.margin]
        decoded = self._decode(square, decoder)
        factor = decoded.shape[-1] // square.shape[-1]
        rows = slice((top - above) * factor, (bottom - above) * factor)
        columns = slice((left - before) * factor, (right - before) * factor)
        return decoded[..., rows, columns]

    def _decode(self, clean: Tensor, decoder: Decoder) -> Tensor:
        half = self.options.half
        with self._precision(clean.device):
            if self.checkpointing and torch.is_grad_enabled() and clean.requires_grad:
                kept: Tensor = checkpoint(frozen_call, decoder, clean, half=half, use_reentrant=False)
                return kept
            decoded: Tensor = frozen_call(decoder, clean, half=half)
            return decoded

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.options.half)
