"""The latent PRM on a tiny random HunyuanVideo, against the formulas of its blocks and diffusers' own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_prm
import torch
from tiny_families import TINY
from torch import Tensor
from torch.nn import functional

from nrg_sampler import NRGFlowPipeline, attach
from nrg_sampler.rewards import Conditioning, LatentPRM
from nrg_sampler.rewards.base import check_reward
from nrg_sampler.rewards.by_name import local_fingerprint, require_known, reward_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tiny_prm.state_of(tiny_prm.transformer(), tiny_prm.attention_head())
    return tiny_prm.write(tmp_path_factory.mktemp("prm") / "latent_prm", state)


@pytest.fixture
def noisy() -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, noise levels and prompts, the second of which is shorter than it is padded."""
    generator = torch.Generator().manual_seed(5)
    embeds, pooled = torch.randn(2, 5, 16, generator=generator), torch.randn(2, 8, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    latents = torch.randn(2, 4, 2, 4, 6, generator=generator)
    return latents, torch.tensor([0.2, 0.7]), Conditioning(embeds, mask, pooled=pooled)


@torch.no_grad()
def test_scores_are_those_of_the_formulas(tmp_path: Path, noisy: Any) -> None:
    state = tiny_prm.state_of(tiny_prm.transformer(single=0), tiny_prm.attention_head())
    reward = LatentPRM.from_pretrained(tiny_prm.write(tmp_path, state))
    assert reward.blocks == (2, 0) and reward.loaded_keys == (len(state), 0)
    expected = tiny_prm.by_hand(state, *noisy)
    torch.testing.assert_close(reward(*noisy), expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs() > 1e-2
    check_reward(reward)


@pytest.mark.parametrize("guidance", [False, True])
@torch.no_grad()
def test_features_are_those_of_diffusers_own_forward_pass(guidance: bool, tmp_path: Path, noisy: Any) -> None:
    latents, sigma, conditioning = noisy
    whole, head = tiny_prm.transformer(guidance=guidance), tiny_prm.mean_head()
    reward = LatentPRM.from_pretrained(tiny_prm.write(tmp_path, tiny_prm.state_of(whole, head), guidance=3000))
    seen: list[Tensor] = []
    whole.norm_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    whole(
        latents,
        (1000 * sigma).long(),
        conditioning.prompt_embeds,
        conditioning.prompt_mask,
        conditioning.pooled,
        guidance=torch.full((2,), 3000.0) if guidance else None,
    )
    expected = functional.linear(seen[0].mean(1), head["head.weight"], head["head.bias"])
    torch.testing.assert_close(reward(*noisy), expected, rtol=1e-5, atol=1e-6)
    assert reward.blocks == (2, 1)


@torch.no_grad()
def test_what_stands_behind_a_prompt_changes_nothing_and_no_mask_means_all_of_it(folder: Path, noisy: Any) -> None:
    latents, sigma, conditioning = noisy
    reward = LatentPRM.from_pretrained(folder)
    score = reward(*noisy)
    padded = conditioning.prompt_embeds.clone()
    padded[1, 3:] += 7.0
    same = Conditioning(padded, conditioning.prompt_mask, pooled=conditioning.pooled)
    torch.testing.assert_close(reward(latents, sigma, same), score, rtol=1e-4, atol=1e-5)
    unmasked = reward(latents, sigma, Conditioning(conditioning.prompt_embeds, pooled=conditioning.pooled))
    torch.testing.assert_close(unmasked[0], score[0])
    assert (unmasked[1] - score[1]).abs() > 1e-4


@torch.no_grad()
def test_the_timestep_is_a_whole_number(folder: Path, noisy: Any) -> None:
    latents, _, conditioning = noisy
    reward = LatentPRM.from_pretrained(folder)
    scores = [reward(latents, torch.full((2,), sigma), conditioning) for sigma in (0.5, 0.5004, 0.5012)]
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])


def test_gradients_are_those_of_finite_differences(folder: Path, noisy: Any) -> None:
    """In float64, but for the rotary embedding, which diffusers computes in float32; hence the larger steps."""
    reward = LatentPRM.from_pretrained(folder, dtype=torch.float64)
    latents, sigma, conditioning = noisy
    leaf = latents.double().requires_grad_()
    score = reward(leaf, sigma, conditioning)
    assert score.dtype == torch.float64
    (gradient,) = torch.autograd.grad(score.sum(), leaf)
    assert (gradient.abs().amax(dim=(1, 3, 4)) > 0).all()  # every frame counts
    generator = torch.Generator().manual_seed(6)
    for _ in range(4):
        direction = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (reward(leaf + sign * 5e-4 * direction, sigma, conditioning).sum() for sign in (1, -1))
        assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / 1e-3).item(), rel=5e-4)


def test_checkpointing_changes_no_gradient(folder: Path, noisy: Any) -> None:
    latents, sigma, conditioning = noisy
    reward, gradients = LatentPRM.from_pretrained(folder), []
    for _ in range(2):
        leaf = latents.clone().requires_grad_()
        gradients += torch.autograd.grad(reward(leaf, sigma, conditioning).sum(), leaf)
        reward.enable_gradient_checkpointing()
    torch.testing.assert_close(*gradients)


def test_it_is_frozen_and_may_be_of_half_precision(folder: Path, noisy: Any) -> None:
    reward = LatentPRM.from_pretrained(folder, dtype=torch.bfloat16).train()
    assert not any(module.training for module in reward.modules())
    assert not any(weight.requires_grad for weight in reward.parameters())
    assert reward.dtype == torch.bfloat16 and reward.device.type == "cpu"
    with torch.no_grad():
        score = reward(*noisy)
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, LatentPRM.from_pretrained(folder)(*noisy), rtol=0.1, atol=0.1)


def sampled(tiny: Any, **changes: Any) -> Tensor:
    latents: Tensor = tiny.sample(num_inference_steps=4, **changes)
    return latents


def test_a_name_guides_hunyuan_video_without_a_vae_and_scale_0_changes_nothing(folder: Path) -> None:
    tiny = TINY["HunyuanVideo"]()
    assert tiny.pipe.vae is None
    wanted, arguments = f"latent-prm:{folder}", tiny.arguments
    plain = sampled(tiny)
    with attach(tiny.pipe, wanted, scale=0):
        assert torch.equal(sampled(tiny), plain)
    with attach(tiny.pipe, wanted, scale=30, max_push=None, every=1) as trace:
        guided = sampled(tiny)
    assert trace.axes == ("MQ",) and trace.summary()["guided"] > 0
    reward = reward_for(tiny.pipe, wanted)
    conditioning = Conditioning(
        arguments["prompt_embeds"], arguments["prompt_attention_mask"], pooled=arguments["pooled_prompt_embeds"]
    )
    with torch.no_grad():
        before, after = (reward(latents, torch.zeros(1), conditioning).item() for latents in (plain, guided))
    assert after > before
    assert torch.equal(sampled(tiny), plain)


def test_it_sees_the_noisy_latents_of_the_pipeline_and_its_prompt(folder: Path) -> None:
    tiny = TINY["HunyuanVideo"]()
    reward, seen = LatentPRM.from_pretrained(folder), []
    forward = reward.forward

    def spy(latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append((latents.detach(), sigma, conditioning))
        return forward(latents, sigma, conditioning)

    reward.forward = spy  # type: ignore[method-assign]
    given: list[Tensor] = []
    tiny.pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["hidden_states"].clone()), with_kwargs=True
    )
    with attach(tiny.pipe, reward, scale=1.0, every=1):
        tiny.sample()
    latents, sigma, conditioning = seen[-1]
    torch.testing.assert_close(latents, given[-1])  # scaled as the pipeline has them
    assert 0 < float(sigma) < 1
    torch.testing.assert_close(conditioning.prompt_embeds, tiny.arguments["prompt_embeds"])
    torch.testing.assert_close(conditioning.pooled, tiny.arguments["pooled_prompt_embeds"])
    assert conditioning.prompt_mask.shape == (1, 5)


@pytest.mark.parametrize("family", ["Wan", "HunyuanVideo 1.5", "LTX", "FLUX.1", "Stable Diffusion 3"])
def test_other_families_are_refused_before_anything_is_loaded(family: str, folder: Path) -> None:
    pipe = TINY[family]().pipe
    for reward in ("latent-prm", LatentPRM.from_pretrained(folder)):
        with (
            pytest.raises(
                ValueError, match="Expected a HunyuanVideo pipeline, as latent-prm was trained on, but .* has"
            ),
            attach(pipe, reward),
        ):
            pass


def test_a_hunyuan_video_of_another_size_is_refused(folder: Path) -> None:
    tiny = TINY["HunyuanVideo"]()
    tiny.pipe.transformer.register_to_config(text_embed_dim=24)
    with (
        pytest.raises(ValueError, match="Expected a transformer with `text_embed_dim` 16, as this reward was trained"),
        attach(tiny.pipe, f"latent-prm:{folder}"),
    ):
        pass


def test_a_pipeline_keeps_its_name(folder: Path, tmp_path: Path) -> None:
    tiny, wanted = TINY["HunyuanVideo"](), f"latent-prm:{folder}"
    guided = NRGFlowPipeline.from_pipe(tiny.pipe, wanted)
    assert isinstance(guided.reward_model, LatentPRM) and guided.reward_model.source == wanted
    guided.save_pretrained(tmp_path / "saved")
    assert isinstance(guided.reward_model, LatentPRM)
    assert "latent-prm" in (tmp_path / "saved" / "sampling.json").read_text(encoding="utf-8")
    assert not (tmp_path / "saved" / "reward_model").exists()
    absent = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    again = NRGFlowPipeline.from_pretrained(tmp_path / "saved", **dict.fromkeys(absent))
    assert again.reward_model.source == wanted and again.reward_model.dtype == torch.float32
    again.set_progress_bar_config(disable=True)
    tiny.pipe = again
    first = sampled(tiny, reward_scale=5.0)
    assert not torch.equal(first, sampled(tiny, reward_scale=0.0))
    assert local_fingerprint(wanted) and local_fingerprint("latent-prm:nowhere") is None


@pytest.mark.parametrize("name", ["latent-prm", "Euphonium", "latent_PRM", "Yukino271828/SoliReward"])
def test_names_that_mean_it(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    require_known(name)
    with pytest.raises(ValueError, match=r"Expected the folder latent_prm in the local cache of .*hf download Yukino"):
        reward_for(TINY["HunyuanVideo"]().pipe, name)
    assert local_fingerprint(name) is None


def test_the_cache_of_the_hub_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Yukino271828--SoliReward"
    shutil.copytree(folder, repository / "snapshots" / "abc" / "latent_prm")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    assert isinstance(reward_for(TINY["HunyuanVideo"]().pipe, "latent-prm"), LatentPRM)
    assert local_fingerprint("latent-prm") is not None


def test_says_what_is_missing_in_a_call(folder: Path, noisy: Any) -> None:
    reward = LatentPRM.from_pretrained(folder)
    latents, sigma, conditioning = noisy
    with pytest.raises(ValueError, match="but got no prompt; guide with `attach`"):
        reward(latents, sigma, Conditioning())
    with pytest.raises(ValueError, match="but got no pooled prompt"):
        reward(latents, sigma, Conditioning(conditioning.prompt_embeds))
    with pytest.raises(ValueError, match=r"in whole patches of 1 x 2 x 2, but got \(2, 4, 2, 3, 6\)"):
        reward(latents[..., :3, :], sigma, conditioning)
