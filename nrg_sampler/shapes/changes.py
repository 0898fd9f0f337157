"""Changes of finished clips whose effect on an eye is known: visible faults, slight changes, and what is no better."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nrg_sampler.shapes.fit import fit_clean
from nrg_sampler.shapes.scenes import FPS

Change = Callable[[Tensor], Tensor]


def blur(clips: Tensor, width: float) -> Tensor:
    """Blur each frame by a Gaussian of ``width`` pixels standard deviation."""
    reach = int(4 * width) + 1
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * width**2))
    kernel = (kernel / kernel.sum()).expand(clips.shape[1], 1, -1)
    frames = functional.pad(_frames(clips), (reach,) * 4, mode="replicate")
    frames = functional.conv2d(frames, kernel[:, :, None], groups=clips.shape[1])
    return _clips(functional.conv2d(frames, kernel[..., None], groups=clips.shape[1]), clips)


def box_blur(clips: Tensor) -> Tensor:
    """Average each pixel with its eight neighbours."""
    return _clips(functional.avg_pool2d(functional.pad(_frames(clips), (1,) * 4, mode="replicate"), 3, 1), clips)


def compressed(clips: Tensor, crf: int) -> Tensor:
    """Write and read each clip as H.264 at a constant rate factor (0 to 51, more is worse).

    Raises:
        ValueError: If a side is odd, which this kind of H.264 does not have.
    """
    import av

    height, width = clips.shape[3:]
    if height % 2 or width % 2:
        raise ValueError(f"Expected pictures with even sides for H.264, but got {height} x {width}; crop them.")
    read = []
    for clip in clips:
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.options = {"crf": str(crf)}
            for frame in clip.permute(1, 2, 3, 0).mul(255).round().byte().numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        file.seek(0)
        with av.open(file, "r") as written:
            frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in written.decode(video=0)]
        read.append(torch.stack(frames).permute(3, 0, 1, 2).float() / 255)
    return torch.stack(read)


def noise(clips: Tensor, deviation: float) -> Tensor:
    """Add the same Gaussian noise in every call."""
    return clips + deviation * torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))


def ragged(clips: Tensor, pixels: float) -> Tensor:
    """Displace pixels at random, frame by frame, by ``pixels`` standard deviation; neighbours within 3 move alike."""
    frames = _frames(clips)
    height, width = frames.shape[2:]
    coarse = torch.randn(len(frames), 2, height // 3, width // 3, generator=torch.Generator().manual_seed(1))
    moves = functional.interpolate(coarse, size=(height, width), mode="bicubic") * pixels * 2 / width
    still = functional.affine_grid(torch.eye(2, 3).expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    moved = functional.grid_sample(
        frames, still + moves.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    return _clips(moved, clips)


def fringed(clips: Tensor, share: float) -> Tensor:
    """Darken a rim of two pixels around the shape by ``share``."""
    inside = (fit_clean(clips).mask > 0.3).float()
    rim = functional.max_pool2d(inside.flatten(0, 1)[:, None], 5, stride=1, padding=2).view_as(inside) - inside
    return clips * (1 - share * rim[:, None])


def haloed(clips: Tensor, share: float) -> Tensor:
    """Let at most ``share`` of the shape's colour bleed into the background around it, over some six pixels."""
    fit = fit_clean(clips)
    outside = blur((fit.mask > 0.5).float()[:, None], 3.0) * (fit.mask < 0.3)[:, None]
    color = fit.color.transpose(1, 2)[..., None, None].expand_as(clips)
    return torch.lerp(clips, color, (2 * share * outside).clamp(max=share))


def greyed(clips: Tensor, below: float = 0.25) -> Tensor:
    """Take the colour from pixels whose saturation is below ``below``."""
    most, least = clips.amax(dim=1, keepdim=True), clips.amin(dim=1, keepdim=True)
    pale = (most - least) / most.clamp(min=1e-3) < below
    return torch.where(pale, clips.mean(dim=1, keepdim=True), clips)


def saturated(clips: Tensor, factor: float) -> Tensor:
    """Scale each pixel's distance from its grey."""
    grey = clips.mean(dim=1, keepdim=True)
    return grey + factor * (clips - grey)


def tinted(clips: Tensor, warmth: float) -> Tensor:
    """Scale red up and blue down by ``warmth``."""
    return clips * torch.tensor([1 + warmth, 1.0, 1 - warmth]).view(1, 3, 1, 1, 1)


def _frames(clips: Tensor) -> Tensor:
    """Return the frames ``(B * T, C, H, W)`` of clips."""
    return clips.transpose(1, 2).flatten(0, 1)


def _clips(frames: Tensor, like: Tensor) -> Tensor:
    """Return the clips of frames."""
    return frames.view_as(like.transpose(1, 2)).transpose(1, 2)


# What anybody sees: VQ has to fall.
VISIBLE: dict[str, Change] = {
    "blurred by 1.5 pixels": lambda clips: blur(clips, 1.5),
    "H.264 at crf 38": lambda clips: compressed(clips, 38),
    "noise of 0.05": lambda clips: noise(clips, 0.05),
    "ragged outlines": lambda clips: ragged(clips, 1.5),
    "dark fringes": lambda clips: fringed(clips, 0.25),
}
# Within what the world's own scenes span: no axis may move.
SLIGHT: dict[str, Change] = {
    "darker, 0.93": lambda clips: 0.93 * clips,
    "brighter, 1.05": lambda clips: 1.05 * clips,
    "saturation 0.9": lambda clips: saturated(clips, 0.9),
    "saturation 1.1": lambda clips: saturated(clips, 1.1),
    "warmer": lambda clips: tinted(clips, 0.03),
    "cooler": lambda clips: tinted(clips, -0.03),
    "8 bit": lambda clips: (255 * clips).round() / 255,
}
# Neither: an axis may fall, but not rise.
NO_BETTER: dict[str, Change] = {
    "pale pixels grey": greyed,
    "pale pixels grey, darker": lambda clips: 0.87 * greyed(clips),
    "3x3 box blur": box_blur,
    "noise of 0.02": lambda clips: noise(clips, 0.02),
    "faint halo": lambda clips: haloed(clips, 0.12),
}
CHANGES = {**VISIBLE, **SLIGHT, **NO_BETTER}
