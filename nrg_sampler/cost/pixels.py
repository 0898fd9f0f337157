"""What a reward on pixels costs: the gradient through the decoder and the judge, counted at full size."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nrg_sampler.cost.counting import Counted, count
from nrg_sampler.cost.memory import MIB
from nrg_sampler.cost.published import judge_of, vae_of
from nrg_sampler.cost.step import bytes_of, count_unguided
from nrg_sampler.cost.workloads import Workload
from nrg_sampler.guidance.settings import RewardGuidance
from nrg_sampler.rewards.decoding import Decoder, channels_of
from nrg_sampler.rewards.frames import ALL, chosen_frames
from nrg_sampler.rewards.named.joint import JointJudge
from nrg_sampler.rewards.named.judge import NamedJudge
from nrg_sampler.rewards.named.table import TABLE
from nrg_sampler.rewards.pixel import PixelReward

PROMPT, FPS = "a prompt", 16.0
IN_TURNS = ("turns", "random")  # counted at the middle of the clip, where a frame has all its context


@dataclass(frozen=True)
class PixelCost:
    """Cost of a named reward on a workload.

    Args:
        config: Name of the workload.
        about: What is sampled.
        reward: Name of the reward.
        frames: Which latent frames it looks at.
        every: Each n-th step is evaluated.
        offload: Whether the judge rests off the device.
        half: Whether judge and decoder compute in bfloat16.
        k_flops: Counted operations of a guided step over those of an unguided one.
        peak_memory_mib: Highest memory on the device: the video model, the autoencoder and the judge with their
            weights, no text encoder.
        unguided_memory_mib: The same without guidance, the autoencoder included.
    """

    config: str
    about: str
    reward: str
    frames: str
    every: int
    offload: bool
    half: bool
    k_flops: float
    peak_memory_mib: float
    unguided_memory_mib: float

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return asdict(self)


def pixel_costs(
    workload: Workload,
    names: Sequence[str],
    guidance: RewardGuidance,
    *,
    every: Sequence[int] = (1, 2),
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[PixelCost]:
    """Yield the cost of each named reward, for each number in ``every``.

    Nothing is timed. The transformer has its weights in ``dtype``, autoencoder and judge in float32, as they are
    loaded; a judge that is loaded in bfloat16 counts as such.

    Args:
        workload: What is sampled.
        names: Of rewards on pixels.
        guidance: Which latent frames they look at, and how they compute.
        every: Each n-th step evaluated.
        dtype: Of the transformer.

    Raises:
        ValueError: If the workload has no published autoencoder.
    """
    unguided, transformer = count_unguided(workload, dtype)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        vae = vae_of(workload.name)
        latents = torch.empty(video_shape(workload, vae))
    decoding: dict[str, tuple[Counted, tuple[int, ...]]] = {}  # the same for all that look at the same frames
    for name in names:
        entry = next(entry for entry in TABLE if entry.name == name)
        with init_empty_weights(include_buffers=False):
            judge = judge_of(entry)
        judge = without_memory(judge, fake, torch.bfloat16 if entry.half else torch.float32)
        frames = guidance.frames or entry.frames
        reward = OneSquareReward(judge, vae, entry.axes)
        reward.options = guidance.pixel_options
        if frames not in decoding:
            decoding[frames] = count_decoding(reward, latents, frames)
        gradient = _combined(reward, judge, fake, *decoding[frames])
        peak = max(unguided.peak_bytes, transformer + gradient.working) + bytes_of(vae) + gradient.judge
        for gap in every:
            yield PixelCost(
                config=workload.name,
                about=workload.about,
                reward=name,
                frames=frames,
                every=gap,
                offload=guidance.offload,
                half=guidance.half,
                k_flops=round(1 + gradient.flops / unguided.flops / gap, 3),
                peak_memory_mib=round(peak / MIB, 1),
                unguided_memory_mib=round((unguided.peak_bytes + bytes_of(vae)) / MIB, 1),
            )


@dataclass(frozen=True)
class PixelGradient:
    """What one gradient of a reward on pixels takes.

    Args:
        flops: Operations.
        working: Highest memory in bytes, beyond the weights that stay on the device.
        judge: Bytes of the judge's weights that stay there.
    """

    flops: int
    working: int
    judge: int


def is_countable(reward: Any) -> bool:
    """Return whether a reward on pixels is made of published judges, which run without pixels too."""
    judges = (
        reward.judge.judges
        if isinstance(getattr(reward, "judge", None), JointJudge)
        else [getattr(reward, "judge", None)]
    )
    return isinstance(reward, PixelReward) and all(isinstance(judge, NamedJudge) for judge in judges)


def gradient_of(reward: PixelReward, shape: tuple[int, ...], guidance: RewardGuidance) -> PixelGradient:
    """Count a gradient of a reward that is loaded, without running it.

    Args:
        reward: The reward; its judge is copied without its weights.
        shape: Of the latents, ``(B, C, T, H, W)``.
        guidance: Which latent frames it looks at, and how it computes.
    """
    guiding = reward.computed_with(guidance.pixel_options).guiding.vae
    assert isinstance(reward.judge, nn.Module)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    judge, vae = without_memory(reward.judge, fake), without_memory(guiding, fake)
    with fake:
        latents = torch.empty(shape)
    tiles = {name: getattr(reward, name) for name in ("tile", "margin", "context", "checkpointing")}
    twin = OneSquareReward(judge, vae, reward.axes, **tiles)
    twin.options = guidance.pixel_options
    return _combined(twin, judge, fake, *count_decoding(twin, latents, guidance.frames or reward.recommended_frames))


def _combined(
    reward: OneSquareReward, judge: nn.Module, fake: FakeTensorMode, decoding: Counted, shown: tuple[int, ...]
) -> PixelGradient:
    with fake:
        frames = torch.empty(shown)
    judging = count_judging(reward, judge, frames)
    stays = 0 if reward.options.offload else bytes_of(judge)
    vae = bytes_of(reward.decoder)
    working = max(decoding.peak_bytes - vae, judging.peak_bytes - stays)
    return PixelGradient(decoding.flops + judging.flops, working, stays)


class OneSquareReward(PixelReward):
    """A reward that decodes the largest of its squares for all of them: the rest of them cost as much by area."""

    def _decode_in_tiles(self, clean: Tensor, decoder: Decoder) -> Tensor:
        if self.tile is None:
            return super()._decode_in_tiles(clean, decoder)
        height, width = (max(self._sides(size)) for size in clean.shape[-2:])
        square = clean[..., :height, :width]
        shown = self._decode(square, decoder)
        factor = shown.shape[-1] // width
        whole = (*shown.shape[:-2], factor * clean.shape[-2], factor * clean.shape[-1])
        return shown.mean(dim=(-2, -1), keepdim=True).expand(whole).contiguous()

    def squares(self, height: int, width: int) -> float:
        """Return the area of all squares of latents of a size, in areas of the largest."""
        if self.tile is None:
            return 1.0
        down, across = self._sides(height), self._sides(width)
        return sum(down) * sum(across) / (max(down) * max(across))

    def _sides(self, size: int) -> list[int]:
        return [min(size, stop + self.margin) - max(0, start - self.margin) for start, stop in self._spans(size)]


def count_decoding(reward: OneSquareReward, latents: Tensor, frames: str) -> tuple[Counted, tuple[int, ...]]:
    """Count the way from latents to frames and back, the autoencoder's weights included.

    Args:
        reward: A reward that was made of fake tensors.
        latents: Fake latents, shape ``(B, C, T, H, W)``.
        frames: Which latent frames are looked at.

    Returns:
        What it takes, and the shape of what the judge sees.
    """
    wanted = "middle" if frames in IN_TURNS else frames
    chosen = None if wanted == ALL else chosen_frames(wanted, latents.shape[2], 0)[0]
    shapes = []

    def there_and_back() -> Any:
        read = latents.clone().requires_grad_()
        shown = reward.frames(1 * read, chosen)  # the counter cannot follow a leaf into a module
        shapes.append(tuple(shown.shape))
        return torch.autograd.grad(shown.sum(), read)

    counted = count(there_and_back, [reward.decoder])
    return replace(counted, flops=round(counted.flops * reward.squares(*latents.shape[-2:]))), shapes[0]


def count_judging(reward: OneSquareReward, judge: nn.Module, frames: Tensor) -> Counted:
    """Count the gradient of a judge with respect to fake frames, its weights included.

    The weights of one that is offloaded come for the call, from where nothing takes memory.
    """
    if reward.options.offload:
        reward.judge = with_tensors(judge, lambda weight: weight.to("meta"))

    def there_and_back() -> Any:
        read = frames.clone().requires_grad_()
        scores = reward.score_frames(1 * read, (PROMPT,) * len(read), FPS)
        return torch.autograd.grad(scores.sum(), read)

    return count(there_and_back, [] if reward.options.offload else [judge])


def video_shape(workload: Workload, vae: nn.Module) -> tuple[int, ...]:
    """Return the shape ``(B, C, T, H, W)`` of a workload's latents, as its autoencoder has them."""
    if len(workload.latents) == 5:
        return workload.latents
    if len(workload.latents) == 4:
        batch, channels, height, width = workload.latents
        return (batch, channels, 1, height, width)
    channels = channels_of(vae) or workload.latents[-1]
    side = math.isqrt(workload.latents[-1] // channels)  # of the patches that are packed to one token
    frames, height, width = workload.grid
    return (workload.latents[0], channels, frames, height * side, width * side)


def with_tensors(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a module, with something else in place of each weight and buffer."""
    memo: dict[int, Any] = {id(buffer): change(buffer) for buffer in module.buffers()}
    for weight in module.parameters():
        memo[id(weight)] = nn.Parameter(change(weight.detach()), requires_grad=False)
    return copy.deepcopy(module, memo)


def without_memory(module: nn.Module, fake: FakeTensorMode, dtype: torch.dtype | None = None) -> nn.Module:
    """Copy a module with fake tensors in place of its own, its weights in another precision if one is given."""

    def faked(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty(tensor.shape, dtype=dtype if dtype and tensor.is_floating_point() else tensor.dtype)

    return with_tensors(module, faked)
