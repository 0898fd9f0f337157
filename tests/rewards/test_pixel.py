"""A reward on pixels: its gradient, its tiles, its memory, and that it guides a stock pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import LATENT_CHANNELS, sample
from torch import nn

from nrg_sampler import Conditioning, GuidanceWarning, RewardGuidance, attach, guided_velocity
from nrg_sampler.cost.counting import MemoryCounter
from nrg_sampler.guidance.resolved import resolve
from nrg_sampler.guidance.step import reward_direction
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.rewards.pixel import PixelReward


class Judge(nn.Module):
    """Brightness and contrast of a clip."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, frames):
        flat = (frames * self.gain.to(frames.dtype)).flatten(1)
        return torch.stack([flat.mean(dim=1), flat.std(dim=1)], dim=1)


class ConvolutionalVAE(nn.Module):
    """A decoder that sees two latent pixels to each side, and doubles the size."""

    def __init__(self, width=8):
        super().__init__()
        self.config = SimpleNamespace(latent_channels=4, scaling_factor=0.5, shift_factor=0.1)
        self.body = nn.Sequential(
            nn.Conv3d(4, width, 3, padding=1), nn.SiLU(), nn.Conv3d(width, 12, 3, padding=1), nn.Tanh()
        )

    def decode(self, latents, return_dict):
        pixels = self.body(latents).unflatten(1, (3, 2, 2)).permute(0, 1, 4, 5, 2, 6, 3)  # (B, 3, T, H, 2, W, 2)
        return (pixels.flatten(5, 6).flatten(3, 4),)


@pytest.fixture
def convolutional():
    torch.manual_seed(0)
    return ConvolutionalVAE().double()


def latents(channels=4, size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, channels, 2, size, size, generator=generator, dtype=torch.float64)


SIGMA = torch.tensor([0.3, 0.7], dtype=torch.float64)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_gradient_matches_finite_differences_at_constant_velocity(convolutional, axis):
    noisy, velocity = latents()
    reward = PixelReward(Judge(), convolutional, ("light", "contrast"), tile=4, margin=2, noise_aware=False)
    conditioning = Conditioning(velocity=velocity)
    weights = [float(axis == index) for index in range(2)]
    gradient, _ = reward_gradient(noisy, SIGMA, reward, conditioning, weights)
    direction, step = torch.randn_like(noisy), 1e-5
    rise = reward(noisy + step * direction, SIGMA, conditioning) - reward(
        noisy - step * direction, SIGMA, conditioning
    )
    expected = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(rise[:, axis] / (2 * step), expected, rtol=1e-5, atol=1e-9)


def test_the_fading_factor_is_the_jacobian_of_the_exact_denoiser():
    """For x0 ~ N(0, 1), E[x0 | x] comes from the score of x ~ N(0, alpha^2 + sigma^2), written out here."""
    noisy, velocity = latents()
    reward = PixelReward(lambda frames: frames.flatten(1).sum(dim=1, keepdim=True), ConvolutionalVAE(), ("sum",))
    reward.frames = lambda clean, *rest: clean
    gradient, _ = reward_gradient(noisy, SIGMA, reward, Conditioning(velocity=velocity))
    point = noisy.clone().requires_grad_()
    level = SIGMA.view(-1, 1, 1, 1, 1)
    log_density = (-(point**2) / (2 * ((1 - level) ** 2 + level**2))).sum()
    (score,) = torch.autograd.grad(log_density, point, create_graph=True)
    exact = (point + level**2 * score) / (1 - level)  # Tweedie
    (expected,) = torch.autograd.grad(exact.sum(), point)
    torch.testing.assert_close(gradient, expected)


def test_smoothing_averages_over_draws_of_noise_on_the_predicted_clean_latents(convolutional):
    noisy, velocity = latents()
    reward = PixelReward(Judge(), convolutional, ("light", "contrast"))
    seen = []
    decode = reward.frames
    reward.frames = lambda clean, *rest: seen.append(clean.detach()) or decode(clean, *rest)
    share, level = 0.6, SIGMA.view(-1, 1, 1, 1, 1)
    settings = RewardGuidance.preset("best", smoothing=share, smoothing_samples=4)
    found = reward_direction(resolve(settings, reward), noisy, velocity, SIGMA, None).value
    clean, noise = noisy - level * velocity, noisy + (1 - level) * velocity
    middle = clean + level * ((1 - share**2) ** 0.5 - 1) * noise
    assert len(seen) == 4
    for one, other in (seen[:2], seen[2:]):  # fresh noise comes in pairs of both signs
        torch.testing.assert_close((one + other) / 2, middle)
    spread = (seen[0] - middle).std() / level.square().mean().sqrt()
    torch.testing.assert_close(spread.item(), share, rtol=0.15, atol=0)
    reward.frames = decode
    single = [
        reward_gradient(point + level * velocity, SIGMA, reward, Conditioning(velocity=velocity))[0] for point in seen
    ]
    torch.testing.assert_close(found, torch.stack(single).mean(dim=0))


def test_fading_leaves_the_reward_itself_alone(convolutional):
    noisy, velocity = latents()
    conditioning = Conditioning(velocity=velocity)
    readings = [
        PixelReward(Judge(), convolutional, ("light", "contrast"), noise_aware=aware)(noisy, SIGMA, conditioning)
        for aware in (True, False)
    ]
    assert torch.equal(*readings)


def test_tiles_give_the_picture_and_the_gradient_of_the_whole(convolutional):
    noisy, velocity = latents(size=9)
    found = []
    for tile in (None, 3, 4):
        reward = PixelReward(Judge(), convolutional, ("light", "contrast"), tile=tile, margin=2)
        frames = reward.frames(noisy)
        assert frames.shape == (2, 3, 2, 18, 18)
        found.append((frames, *reward_gradient(noisy, SIGMA, reward, Conditioning(velocity=velocity))))
    for tiled in found[1:]:
        for part, whole in zip(tiled, found[0], strict=True):
            torch.testing.assert_close(part, whole)


def test_without_a_margin_the_seams_show(convolutional):
    noisy, _ = latents(size=9)
    whole, tiled = (
        PixelReward(Judge(), convolutional, ("light", "contrast"), tile=tile, margin=0).frames(noisy)
        for tile in (None, 3)
    )
    assert (whole - tiled).abs().max() > 1e-3


def peak(reward, noisy, velocity):
    with MemoryCounter() as memory:
        reward_gradient(noisy, 0.5, reward, Conditioning(velocity=velocity))
    return memory.peak_bytes


def test_checkpointed_tiles_need_less_memory():
    torch.manual_seed(0)
    vae = ConvolutionalVAE(width=64)
    noisy, velocity = latents(size=24).float()
    axes = ("light", "contrast")
    plain = peak(PixelReward(Judge(), vae, axes, tile=None, checkpointing=False), noisy, velocity)
    checkpointed = peak(PixelReward(Judge(), vae, axes, tile=4, margin=2), noisy, velocity)
    assert checkpointed < 0.4 * plain


def test_weights_of_vae_and_judge_stay_as_they_were(convolutional):
    noisy, velocity = latents()
    judge = Judge()
    reward = PixelReward(judge, convolutional, ("light", "contrast"))
    reward_gradient(noisy, SIGMA, reward, Conditioning(velocity=velocity))
    for parameter in (*judge.parameters(), *convolutional.parameters()):
        assert parameter.requires_grad
        assert parameter.grad is None


def test_it_scores_finished_latents_and_clips_without_a_velocity(convolutional):
    clean, _ = latents()
    reward = PixelReward(Judge(), convolutional, ("light", "contrast"))
    with torch.no_grad():
        by_latents = reward(clean, torch.zeros(2, dtype=torch.float64), Conditioning())
        assert torch.equal(by_latents, reward.score_frames(reward.frames(clean)))
    with pytest.raises(ValueError, match="Expected the velocity of the step in the conditioning of a pixel reward"):
        reward(clean, SIGMA, Conditioning())


def test_it_guides_a_stock_pipeline_and_scale_0_leaves_it_alone(wan):
    reward = PixelReward(Judge(), wan.vae, ("light", "contrast"))
    unguided = sample(wan)
    brightness = [reward.score_frames(reward.frames(unguided))[0, 0]]
    with attach(wan, reward, scale=0.0):
        assert torch.equal(sample(wan), unguided)
    for scale in (300.0, 3000.0):
        with attach(wan, reward, weights="light=1", scale=scale, max_push=None) as trace:
            brightness.append(reward.score_frames(reward.frames(sample(wan)))[0, 0])
    assert brightness == sorted(brightness)
    assert brightness[-1] > brightness[0] + 1e-3
    assert trace.summary()["guided"] == 3
    assert not any(hasattr(parameter, "grad") and parameter.grad is not None for parameter in wan.vae.parameters())


def test_a_loop_of_ones_own_hands_over_the_velocity(convolutional):
    noisy, velocity = latents()
    reward = PixelReward(Judge(), convolutional, ("light", "contrast"))
    guided = guided_velocity(noisy, velocity, 0.5, reward)
    assert not torch.equal(guided, velocity)


def test_says_what_is_wrong(convolutional, wan):
    with pytest.raises(ValueError, match=r"Expected `tile` to be 1 or more latent pixels, or None.*but got 0"):
        PixelReward(Judge(), convolutional, ("light",), tile=0)
    with pytest.raises(ValueError, match="Expected `margin` to be 0 or more latent pixels, but got -1"):
        PixelReward(Judge(), convolutional, ("light",), margin=-1)
    with pytest.raises(ValueError, match=r"Expected the judge to return shape \(2, 1\).*but got \(2, 2\)"):
        PixelReward(Judge(), convolutional, ("light",)).score_frames(torch.rand(2, 3, 2, 4, 4))
    with pytest.raises(ValueError, match=f"with 4 latent channels.*WanPipeline has {LATENT_CHANNELS}"):
        PixelReward(Judge(), convolutional, ("light",)).check_compatible(wan)


def test_a_judge_that_hardly_pushes_at_the_default_scale_says_so(wan):
    reward = PixelReward(lambda frames: frames.mean(dim=(1, 2, 3, 4))[:, None], wan.vae, ("light",))
    message = r"Guidance had next to no effect: mean push \S+ %; raise `scale`, which was 1, to about \d+ for a push"
    with pytest.warns(GuidanceWarning, match=message), attach(wan, reward, RewardGuidance()):
        sample(wan)
