"""The latent reward: what it sees, what it refuses, and that its gradient is right."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_transformer

from nrg_sampler.checkpoints import bundled_folder
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.card import model_card
from nrg_sampler.rewards.gradient import reward_gradient
from nrg_sampler.rewards.latent import LatentReward
from nrg_sampler.rewards.latent_space import latent_space
from nrg_sampler.rewards.reads import POOLINGS, Attention, PooledRead
from nrg_sampler.training.ensemble import align_members

SHAPE = (2, 16, 3, 4, 4)


@pytest.fixture(params=[0, 1], ids=["prompt as a whole", "word by word"])
def reward(request):
    transformer = tiny_transformer()
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(transformer, num_blocks=1, num_token_reads=request.param)
    return reward.requires_grad_(False).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    embeds = torch.randn(2, 6, 16, generator=generator)
    embeds[1, 4:] = 0
    return torch.randn(SHAPE, generator=generator), torch.tensor([0.3, 0.8]), Conditioning(embeds)


def test_gives_one_number_per_sample_and_axis(reward, inputs):
    assert reward.axes == ("VQ", "MQ", "TA")
    assert reward(*inputs).shape == (2, 3)


def test_only_text_axes_see_the_prompt(reward, inputs):
    latents, sigma, conditioning = inputs
    other = Conditioning(conditioning.prompt_embeds.flip(0))
    before, after = reward(latents, sigma, conditioning), reward(latents, sigma, other)
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2] - after[:, 2]).abs().min() > 1e-5


def test_padding_a_prompt_changes_nothing(reward, inputs):
    latents, sigma, conditioning = inputs
    padded = torch.nn.functional.pad(conditioning.prompt_embeds, (0, 0, 0, 500))
    torch.testing.assert_close(reward(latents, sigma, Conditioning(padded)), reward(latents, sigma, conditioning))


def test_noise_level_matters(reward, inputs):
    latents, sigma, conditioning = inputs
    assert (reward(latents, sigma, conditioning) - reward(latents, 1 - sigma, conditioning)).abs().max() > 1e-5


def test_a_batch_equals_single_samples(reward, inputs):
    latents, sigma, conditioning = inputs
    single = [
        reward(latents[i : i + 1], sigma[i : i + 1], Conditioning(conditioning.prompt_embeds[i : i + 1]))
        for i in range(2)
    ]
    torch.testing.assert_close(reward(*inputs), torch.cat(single), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axis", range(3))
def test_gradient_matches_finite_differences(reward, inputs, axis):
    latents, sigma, conditioning = inputs
    weights = [float(index == axis) for index in range(3)]
    gradient, _ = reward_gradient(latents, sigma, reward, conditioning, weights)
    direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    step = 0.02  # the transformer's norms run in float32, so smaller steps drown in rounding
    rise = reward(latents + step * direction, sigma, conditioning) - reward(
        latents - step * direction, sigma, conditioning
    )
    expected = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(rise[:, axis] / (2 * step), expected, rtol=2e-2, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradient(reward, inputs):
    latents, sigma, conditioning = inputs
    plain, _ = reward_gradient(latents, sigma, reward, conditioning)
    reward.enable_gradient_checkpointing()
    checkpointed, _ = reward_gradient(latents, sigma, reward, conditioning)
    torch.testing.assert_close(checkpointed, plain)


def test_starts_from_the_blocks_of_the_transformer():
    transformer = tiny_transformer()
    reward = LatentReward.from_transformer(transformer, num_blocks=1)
    for name, value in transformer.blocks[0].state_dict().items():
        assert torch.equal(reward.blocks[0].state_dict()[name], value)
    with pytest.raises(ValueError, match=r"Expected `num_blocks` between 1 and 1 .* but got 2"):
        LatentReward.from_transformer(transformer, num_blocks=2)


def test_round_trip_keeps_outputs_and_statistics(reward, inputs, tmp_path):
    assert reward.recommended_damping is reward.recommended_fading is None
    reward.register_to_config(
        mean=[1.0, 2.0, 3.0],
        std=[0.5, 1.0, 2.0],
        recommended_scale=[0.7, 0.7, 2.0],
        recommended_damping=[0.0, 0.5, 1.5],
    )
    reward.save_pretrained(tmp_path)
    loaded = LatentReward.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(*inputs), reward(*inputs))
    assert loaded.mean == (1.0, 2.0, 3.0)
    assert loaded.std == (0.5, 1.0, 2.0)
    assert loaded.recommended_scale == (0.7, 0.7, 2.0)
    assert loaded.recommended_damping == (0.0, 0.5, 1.5)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training


def test_half_precision_stays_close(reward, inputs):
    full = reward(*inputs)
    torch.testing.assert_close(reward.to(torch.bfloat16)(*inputs), full, atol=0.05, rtol=0.05)


def test_refuses_another_latent_space(wan):
    reward = LatentReward.from_transformer(tiny_transformer(), 1)
    reward.check_compatible(wan)
    reward.register_to_config(in_channels=48)
    with pytest.raises(ValueError, match=r"Expected a pipeline with 48 latent channels.*has 16"):
        reward.check_compatible(wan)


def test_refuses_another_vae(wan, tmp_path):
    reward = LatentReward.from_transformer(tiny_transformer(), 1, latent_space=latent_space(wan.vae))
    reward.save_pretrained(tmp_path)
    loaded = LatentReward.from_pretrained(tmp_path)
    loaded.check_compatible(wan)  # JSON has turned tuples into lists
    loaded.register_to_config(latent_space={**loaded.config.latent_space, "vae": "AutoencoderKLLTXVideo"})
    with pytest.raises(ValueError, match=r"Expected a VAE with `vae` AutoencoderKLLTXVideo.*has AutoencoderKLWan"):
        loaded.check_compatible(wan)
    mean = [0.5, *loaded.config.latent_space["latents_mean"][1:]]
    loaded.register_to_config(latent_space={**latent_space(wan.vae), "latents_mean": mean})
    with pytest.raises(ValueError, match=r"Expected a VAE with `latents_mean` \[0.5"):
        loaded.check_compatible(wan)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("separate", [True, False])
def test_pooling_and_queries_can_be_chosen(inputs, tmp_path, pooling, separate):
    options = {"pooling": pooling, "separate_queries": separate}
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(tiny_transformer(), 1, **options).requires_grad_(False).eval()
    latents, sigma, conditioning = inputs
    before = reward(*inputs)
    assert before.shape == (2, 3)
    moved = (before - reward(latents, sigma, Conditioning(conditioning.prompt_embeds.flip(0)))).abs().amin(dim=0)
    assert (moved > 1e-6).tolist() == ([False, False, True] if separate else [True, True, True])
    assert reward_gradient(latents, sigma, reward, conditioning)[0].abs().max() > 0
    reward.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentReward.from_pretrained(tmp_path)(*inputs), before)


@pytest.mark.parametrize("options", [{}, {"pooling": "max"}, {"separate_queries": False}, {"text_axes": ()}])
def test_members_differ_and_the_reward_is_their_mean(inputs, tmp_path, options):
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(tiny_transformer(), 1, num_members=3, num_token_reads=1, **options)
    reward.requires_grad_(False).eval()
    members = reward(*inputs, members=True)
    assert members.shape == (2, 3, 3)
    assert members.std(dim=1).min() > 1e-4
    torch.testing.assert_close(reward(*inputs), members.mean(dim=1))
    reward.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentReward.from_pretrained(tmp_path)(*inputs, members=True), members)


def test_the_first_member_is_what_a_reward_without_others_would_be(inputs):
    torch.manual_seed(1)
    single = LatentReward.from_transformer(tiny_transformer(), 1).eval()
    several = LatentReward.from_transformer(tiny_transformer(), 1, num_members=2).eval()
    several.load_state_dict(single.state_dict(), strict=False)
    torch.testing.assert_close(several(*inputs, members=True)[:, 0], single(*inputs))
    assert torch.equal(single(*inputs, members=True)[:, 0], single(*inputs))


def test_aligned_members_have_one_mean_and_one_spread(inputs):
    torch.manual_seed(1)
    reward = LatentReward.from_transformer(tiny_transformer(), 1, num_members=3).requires_grad_(False).eval()
    latents, sigma, conditioning = inputs
    before = reward(latents, sigma, conditioning, members=True)
    stated = align_members(reward, before)
    after = reward(latents, sigma, conditioning, members=True)
    torch.testing.assert_close(after, stated, atol=1e-4, rtol=1e-4)
    for statistic in (after.mean(dim=0), after.std(dim=0)):
        torch.testing.assert_close(statistic, statistic[:1].expand(3, -1), atol=1e-4, rtol=1e-4)
    assert (before.std(dim=0) - after.std(dim=0)).abs().max() > 1e-3  # something was done
    single = LatentReward.from_transformer(tiny_transformer(), 1).requires_grad_(False).eval()
    found = single(latents, sigma, conditioning, members=True)
    assert torch.equal(align_members(single, found), found)


def test_a_pooled_reward_is_blind_to_the_order_of_features():
    features = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    for pooling in ("mean", "max"):
        read = PooledRead(8, pooling)
        queries = torch.randn(2, 3, 8)
        torch.testing.assert_close(read(queries, features.flip(1)), read(queries, features))


def test_rewards_saved_before_there_were_options_still_load():
    reward = LatentReward.from_pretrained(bundled_folder("reward"), dtype=torch.float32)
    stored = load_file(bundled_folder("reward") / "diffusion_pytorch_model.safetensors")
    assert set(reward.state_dict()) == set(stored)
    assert reward.config.pooling == "query"
    assert reward.config.separate_queries


def test_writes_a_model_card(reward, tmp_path):
    reward.register_to_config(
        mean=[1.0, 2.0, 3.0],
        std=[0.5, 1.0, 2.0],
        about={
            "base_model": "some/model",
            "data": "12 pairs",
            "license": "apache-2.0",
            "accuracy": {"0.0-0.5": {"VQ": {"accuracy": 0.875, "pairs": 40}, "MQ": {"accuracy": 0.0, "pairs": 0}}},
        },
    )
    reward.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    for line in ("some/model", "12 pairs", "| MQ | 2 | 1 |", "| 0.0-0.5 | 87.5 (40) | - | - |"):
        assert line in card
    plain = model_card(LatentReward.from_transformer(tiny_transformer(), 1).config)
    assert "Not measured." in plain
    assert "**Base model:** not stated" in plain


def test_says_what_is_wrong_with_its_input(reward, inputs):
    latents, sigma, conditioning = inputs
    with pytest.raises(ValueError, match=r"Expected latents of shape \(B, 16, T, H, W\)"):
        reward(latents[:, :4], sigma, conditioning)
    with pytest.raises(ValueError, match="Expected latent sizes that are multiples"):
        reward(latents[..., :3], sigma, conditioning)
    with pytest.raises(ValueError, match=r"Expected `prompt_embeds` of shape \(B, L, 16\).*but got None"):
        reward(latents, sigma, Conditioning())
    with pytest.raises(ValueError, match="Expected `text_axes` to be some of VQ, but got TA"):
        LatentReward(axes=("VQ",), text_axes=("TA",), num_attention_heads=1, attention_head_dim=12, ffn_dim=8)
    with pytest.raises(ValueError, match="Expected `pooling` to be one of query, mean, max, but got 'sum'"):
        LatentReward(pooling="sum", num_attention_heads=1, attention_head_dim=12, ffn_dim=8)
    with pytest.raises(ValueError, match="Expected `num_members` to be at least 1, but got 0"):
        LatentReward(num_members=0, num_attention_heads=1, attention_head_dim=12, ffn_dim=8)


@pytest.mark.parametrize(
    "options",
    [{}, {"prompt_in_trunk": True}, {"text_axes": ()}, {"separate_queries": False}, {"num_members": 2}],
)
def test_a_prepared_prompt_gives_the_same_reward_and_gradient(inputs, options):
    latents, sigma, conditioning = inputs
    padded = Conditioning(torch.nn.functional.pad(conditioning.prompt_embeds, (0, 0, 0, 20)))
    for reads in (0, 1):
        torch.manual_seed(1)
        made = LatentReward.from_transformer(tiny_transformer(), num_blocks=1, num_token_reads=reads, **options)
        made.requires_grad_(False)
        ready = made.prepare(padded)
        for found, expected in zip(
            reward_gradient(latents, sigma, made, ready), reward_gradient(latents, sigma, made, padded), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        words = ready.prepared.words
        assert words is None or words.shape[1] == 6


def test_preparing_the_wrong_prompt_is_an_error(reward):
    with pytest.raises(ValueError, match=r"Expected `prompt_embeds` of shape \(B, L, 16\).*but got \(1, 4, 8\)"):
        reward.prepare(Conditioning(torch.zeros(1, 4, 8)))


@pytest.mark.parametrize("masked", [False, True])
def test_few_queries_and_many_read_the_same(masked):
    torch.manual_seed(0)
    attention = Attention(dim=12, heads=2)
    queries, features = torch.randn(3, 2, 20, 6), torch.randn(3, 50, 12, requires_grad=True)
    mask = torch.rand(3, 50) < 0.5 if masked else None
    many = attention(queries, features, mask)
    few = torch.cat([attention(part, features, mask) for part in queries.split(5, dim=2)], dim=2)
    torch.testing.assert_close(few, many)
    direction = torch.randn_like(many)
    torch.testing.assert_close(
        *(torch.autograd.grad(read, features, direction, retain_graph=True)[0] for read in (few, many))
    )
