"""How latents lie at the scheduler, and the way to ``(B, C, T, H, W)`` and back.

A reward always sees ``(B, C, T, H, W)``; an image is a video of one frame. The ways there only move numbers, so the
gradient that is found there and moved back is the gradient in the pipeline's own layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Call: TypeAlias = Mapping[str, Any]  # arguments of a denoiser by name
Grid: TypeAlias = tuple[int, int, int]  # tokens along T, H and W


class Views(NamedTuple):
    """The way to ``(B, C, T, H, W)`` and, given what surrounds the latents, back."""

    unpack: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """One way to lay out latents.

    Args:
        shape: Its dimensions, in words.
        views: Returns the way there and back for the latents of a run; where the latents alone do not tell their size,
            the arguments of the denoiser do.
    """

    shape: str
    views: Callable[[Call, Tensor], Views]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.shape.count(",") + 1


def _permuted(*order: int) -> Callable[[Call, Tensor], Views]:
    inverse = [order.index(axis) for axis in range(len(order))]
    views = Views(lambda latents: latents.permute(order), lambda video, _: video.permute(inverse))
    return lambda call, latents: views


def _as_they_are(call: Call, latents: Tensor) -> Views:
    return Views(lambda latents: latents, lambda video, _: video)


def _one_frame(call: Call, latents: Tensor) -> Views:
    return Views(lambda image: image.unsqueeze(2), lambda video, _: video.squeeze(2))


def _tokens(grid: Callable[[Call, Tensor], Grid], patch: Grid = (1, 1, 1)) -> Callable[[Call, Tensor], Views]:
    """Tokens in the order of T, H, W, each the patch ``(C, t, h, w)`` in this order; others may stand before them."""

    def views(call: Call, latents: Tensor) -> Views:
        counts = grid(call, latents)
        total = counts[0] * counts[1] * counts[2]

        def unpack(tokens: Tensor) -> Tensor:
            patches = tokens[:, -total:].unflatten(2, (-1, *patch)).unflatten(1, counts)  # (B, T, H, W, C, t, h, w)
            split = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, T, t, H, h, W, w)
            video: Tensor = split.flatten(6, 7).flatten(4, 5).flatten(2, 3)
            return video

        def pack(video: Tensor, before: Tensor) -> Tensor:
            frames, rows, columns = zip(counts, patch, strict=True)
            split = video.unflatten(4, columns).unflatten(3, rows).unflatten(2, frames)  # (B, C, T, t, H, h, W, w)
            tokens = split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3)
            return torch.cat([before[:, :-total].to(tokens.dtype), tokens], dim=1)

        return Views(unpack, pack)

    return views


def _grid_by_name(call: Call, latents: Tensor) -> Grid:
    return call["num_frames"], call["height"], call["width"]


def _grid_of_shapes(call: Call, latents: Tensor) -> Grid:
    frames, height, width = call["img_shapes"][0][0]  # pictures to be edited follow
    return frames, height, width


def _grid_of_ids(call: Call, latents: Tensor) -> Grid:
    """From positions ``(S, 3)`` or ``(B, S, 4)``, of which the second and third are row and column."""
    ids = call["img_ids"].reshape(-1, *call["img_ids"].shape[-2:])[0, : latents.shape[1]]
    height, width = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    return 1, height, width


def _grid_of_coordinates(call: Call, latents: Tensor) -> Grid:
    """From the coordinates ``(B, 3, S)`` of tokens. The video's come last and begin at time 0, given frames do not."""
    time, rows, columns = call["video_coords"][0]
    height, width = (len(axis.unique()) for axis in (rows, columns))
    starts = time[:: height * width]  # one a latent frame
    return len(starts) - int((starts == 0).nonzero()[-1]), height, width


VIDEO = Layout("(B, C, T, H, W)", _as_they_are)
IMAGE = Layout("(B, C, H, W)", _one_frame)
CHANNELS_LAST = Layout("(B, T, H, W, C)", _permuted(0, 4, 1, 2, 3))
SIZED_TOKENS = Layout("(B, T·H·W, C)", _tokens(_grid_by_name))
PLACED_TOKENS = Layout("(B, T·H·W, C)", _tokens(_grid_of_coordinates))
IMAGE_TOKENS = Layout("(B, H·W, C)", _tokens(_grid_of_ids))
IMAGE_PATCHES = Layout("(B, H/2·W/2, 4C)", _tokens(_grid_of_ids, patch=(1, 2, 2)))
SHAPED_PATCHES = Layout("(B, H/2·W/2, 4C)", _tokens(_grid_of_shapes, patch=(1, 2, 2)))


class GivenFrame(NamedTuple):
    """A first frame that a pipeline is given and does not denoise.

    Args:
        read: Finds it, shape ``(B, C, 1, H, W)``, among the arguments of the denoiser; ``None`` if there is none.
        in_latents: Whether the latents at the scheduler have that frame, as noise that nobody looks at.
    """

    read: Callable[[Call], Tensor | None]
    in_latents: bool

    def frame(self, call: Call, latents: Tensor) -> Tensor | None:
        """Return the frame that the denoiser saw, for latents ``(B, C, T, H, W)``; ``None`` if none was given."""
        seen = self.read(call)
        return None if seen is None else seen[: latents.shape[0], : latents.shape[1]].detach().to(latents).clone()

    def completed(self, latents: Tensor, frame: Tensor) -> Tensor:
        """Return latents ``(B, C, T, H, W)`` with the frame at its place."""
        return torch.cat([frame.to(latents), latents[:, :, int(self.in_latents) :]], dim=2)


def _first_of_mixed(call: Call) -> Tensor | None:
    """Wan 2.2 5B mixes the frame into the latents and gives every token a timestep of its own, shape ``(B, S)``."""
    return call["hidden_states"][:, :, :1] if call["timestep"].ndim == 2 else None


def _first_of_tokens(call: Call) -> Tensor:
    tokens: Tensor = call["hidden_states"]
    return SIZED_TOKENS.views(call, tokens).unpack(tokens)[:, :, :1]


def _first_of_video(call: Call) -> Tensor:
    video: Tensor = call["hidden_states"]
    return video[:, :, :1]


def _first_of_channels_last(call: Call) -> Tensor:
    video: Tensor = call["hidden_states"]  # further channels follow those of the latents
    return video[:, :1].permute(0, 4, 1, 2, 3)


MIXED_FRAME = GivenFrame(_first_of_mixed, in_latents=True)
FRAME_IN_TOKENS = GivenFrame(_first_of_tokens, in_latents=False)
FRAME_IN_VIDEO = GivenFrame(_first_of_video, in_latents=False)
FRAME_CHANNELS_LAST = GivenFrame(_first_of_channels_last, in_latents=False)
