"""Where a judge of pixels rests, in which precision it computes, and a small autoencoder that decodes for it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TowardTarget, sample
from torch import Tensor, nn

from nrg_sampler import Conditioning, NRGFlowPipeline, RewardGuidance, attach
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.step import reward_direction
from nrg_sampler.rewards import PixelReward
from nrg_sampler.rewards.decoding import decoded, frozen_call
from nrg_sampler.rewards.pixel_options import PixelOptions
from nrg_sampler.rewards.tiny_vae import check_same_latents


class Net(nn.Module):
    """A small network on frames that keeps what type it computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Conv3d(3, 4, 1)
        self.register_buffer("offset", torch.ones(4, 1, 1, 1))
        self.seen: list[torch.dtype] = []

    def forward(self, frames: Tensor) -> Tensor:
        features = self.layer(frames)
        self.seen.append(features.dtype)
        return (features + self.offset).square().mean(dim=(1, 2, 3, 4))[:, None].float()


@pytest.fixture
def reward(components: dict[str, Any]) -> PixelReward:
    return PixelReward(Net(), components["vae"], ("light",))


def direction(reward: PixelReward, **settings: Any) -> Tensor:
    latents = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    resolved = resolve(RewardGuidance.preset("best", **settings), reward)
    return reward_direction(resolved, latents, 0.5 * latents, 0.5, Conditioning()).value


def alike(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def test_half_precision_computes_in_bfloat16_and_points_the_same_way(reward: PixelReward) -> None:
    whole, half = direction(reward), direction(reward, half=True)
    assert reward.judge.seen[0] == torch.float32 and reward.judge.seen[-1] == torch.bfloat16
    assert alike(whole, half) > 0.99
    assert half.dtype == torch.float32
    assert {weight.dtype for weight in reward.parameters()} == {torch.float32}


def test_an_offloaded_judge_gives_the_same_and_needs_no_place_on_the_device(reward: PixelReward) -> None:
    assert torch.equal(direction(reward), direction(reward, offload=True))
    offloaded = reward.computed_with(PixelOptions(offload=True))
    assert offloaded.offloaded and not reward.offloaded
    assert offloaded.computed_with(offloaded.options) is offloaded
    assert reward.computed_with(offloaded.options) is offloaded  # made once, and not at every step


def test_weights_are_brought_to_where_the_frames_are() -> None:
    """The device ``meta`` computes shapes alone; on it a call with weights of the processor would fail."""
    judge = Net()
    assert frozen_call(judge, torch.empty(1, 3, 2, 4, 4, device="meta")).device.type == "meta"
    assert {weight.device.type for weight in (*judge.parameters(), *judge.buffers())} == {"cpu"}


def test_an_offloaded_vae_is_left_where_it_is(wan: Any, reward: PixelReward) -> None:
    def refuse(module: Any) -> None:
        raise AssertionError("the VAE was moved while the model is in use")

    class Hook:
        pre_forward = staticmethod(refuse)

    before = direction(reward)
    wan.vae._hf_hook = hook = Hook()
    try:
        assert torch.equal(direction(reward), before)
        assert wan.vae._hf_hook is hook
    finally:
        del wan.vae._hf_hook


def test_a_pipeline_that_offloads_its_models_is_guided(components: dict[str, Any]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipe = WanPipeline(**copy.deepcopy(components), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.set_progress_bar_config(disable=True)
    reward = PixelReward(Net(), pipe.vae, ("light",))
    plain = sample(pipe)
    with attach(pipe, reward, scale=50.0):
        guided = sample(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    with attach(pipe, reward, scale=50.0, offload=True) as trace:
        again = sample(pipe)
    assert trace.summary()["guided"] > 0
    assert torch.equal(guided, again) and not torch.equal(guided, plain)


def test_weights_that_come_piece_by_piece_are_refused(components: dict[str, Any], wan: Any) -> None:
    reward = PixelReward(Net(), copy.deepcopy(components["vae"]).to("meta"), ("light",))
    with pytest.raises(ValueError, match="weights in memory, but WanPipeline loads them piece by piece"):
        reward.check_compatible(wan)


def test_a_reward_on_latents_has_none_of_these() -> None:
    for options, given in (
        ({"offload": True, "half": True}, "offload=True, half=True"),
        ({"tiny_vae": "x"}, "tiny_vae='x'"),
    ):
        with pytest.raises(ValueError, match=f"a reward on pixels for {given}, but TowardTarget reads latents"):
            resolve(RewardGuidance(**options), TowardTarget())
    with pytest.raises(ValueError, match="Expected `tiny_vae` to be a folder or a Hub id, but got 3"):
        RewardGuidance(tiny_vae=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected `offload` to be left out with forward='shared', but got True"):
        RewardGuidance(offload=True, forward="shared")


@pytest.fixture
def small(components: dict[str, Any], tmp_path: Path) -> str:
    """An autoencoder that decodes nearly as the pipeline's own does."""
    other = copy.deepcopy(components["vae"])
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    other.save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


def test_a_small_autoencoder_decodes_for_the_gradient_and_not_for_the_score(
    wan: Any, reward: PixelReward, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, fast = direction(reward), direction(reward, tiny_vae=small)
    assert alike(whole, fast) > 0.5 and not torch.equal(whole, fast)
    tiny = reward.computed_with(PixelOptions(tiny_vae=small))
    clean = torch.randn(1, 16, 3, 4, 4)
    assert torch.equal(tiny.frames(clean), decoded(wan.vae, clean))
    with torch.no_grad():
        assert torch.equal(*(one(clean, torch.zeros(1), Conditioning()) for one in (reward, tiny)))
    with attach(wan, reward, tiny_vae=small, scale=50.0) as trace:
        sample(wan)
    assert trace.summary()["guided"] > 0


def test_other_latents_are_refused(components: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, AutoencoderTiny

    vae = components["vae"]
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    channels = AutoencoderKL(**blocks, block_out_channels=(4, 4), latent_channels=4, norm_num_groups=2)
    with pytest.raises(ValueError, match="in 'x', but its latents have 4 channels and not 16"):
        check_same_latents(channels.eval(), vae, "x")
    tiny = AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4
    )
    with pytest.raises(ValueError, match=re.escape("the frames it decodes have the size 1x256x256 and not 1x64x64")):
        check_same_latents(tiny.eval(), vae, "x")
    torch.manual_seed(7)
    unrelated = AutoencoderKL(**blocks, block_out_channels=(4, 4), latent_channels=16, norm_num_groups=2).eval()
    with pytest.raises(ValueError, match=r"what both decode correlates by -?0\.\d\d only; pass the one that was made"):
        check_same_latents(unrelated, vae, "x")
    with pytest.raises(ValueError, match="Expected an autoencoder of diffusers in .*, but found none"):
        PixelReward(Net(), vae, ("light",)).computed_with(PixelOptions(tiny_vae=str(tmp_path)))


def test_the_options_are_settings_of_a_pipeline_with_its_reward(wan: Any, small: str) -> None:
    guided = NRGFlowPipeline.from_pipe(wan, reward_model=PixelReward(Net(), wan.vae, ("light",)))
    call: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 3, "num_inference_steps": 2}
    guidance = RewardGuidance(offload=True, half=True, tiny_vae=small)
    guided("a red circle", max_sequence_length=8, output_type="latent", reward_guidance=guidance, **call)
    assert guided.trace.summary()["guided"] > 0
    assert guided.reward_model.judge.seen[-1] == torch.bfloat16
