"""The gate: what it proposes, that it can be learned, and that "auto" weights reach whoever uses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TowardTarget, sample, tiny_transformer
from tiny_ui import REQUEST, SIZE, studio_of

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, RewardWeights, attach, cli, guided_velocity
from nrg_sampler.rewards.gate import WeightGate, pool_prompts, propose_weights, shares, weights_for_prompt
from nrg_sampler.runs.manifest import Manifest
from nrg_sampler.training.gate import deficits, train_gate
from nrg_sampler.ui.engine import Model

NO_GATE = "Expected a reward with a gate for weights='auto', but {} has none; give one weight per axis"


def gated() -> LatentReward:
    torch.manual_seed(3)
    reward = LatentReward.from_transformer(tiny_transformer(), 1)
    reward.add_gate(WeightGate(16, 3, width=8))
    torch.nn.init.normal_(reward.gate.layers[2].weight, std=3.0)
    return reward.requires_grad_(False).eval()


def test_weights_are_shares_of_the_deficits_that_sum_to_the_number_of_axes():
    found = shares(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [0.0, 5.0, 0.0]]))
    expected = torch.tensor([[0.5, 1.0, 1.5], [1.0, 1.0, 1.0], [0.0, 3.0, 0.0]])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_does_not_count():
    embeds = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(embeds, (0, 0, 0, 3))
    torch.testing.assert_close(pool_prompts(padded), embeds.mean(dim=1))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(pool_prompts(padded, mask)[1], embeds[1, 0])


def test_a_deficit_is_the_distance_of_the_mean_sample_to_what_is_attainable():
    scores = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])
    found, names = deficits(scores, torch.arange(100) // 50 + 7)
    assert names.tolist() == [7, 8]
    torch.testing.assert_close(found, torch.tensor([[1 / scores.std().item()], [0.0]]))


def test_the_gate_learns_which_prompts_lack_what():
    generator = torch.Generator().manual_seed(0)
    prompts = 5 + 2 * torch.randn(300, 16, generator=generator)
    truth = (1 + 0.5 * (prompts[:, :3] - 5)).clamp(min=0)
    gate = train_gate(prompts[:250], truth[:250] + 0.3 * torch.randn(250, 3, generator=generator), steps=400)
    for axis in range(3):
        both = torch.stack([gate(prompts[250:])[:, axis], truth[250:, axis]])
        assert torch.corrcoef(both)[0, 1] > 0.8
    with pytest.raises(ValueError, match="Expected the deficits of 300 prompts, but got 250; give one row each"):
        train_gate(prompts, truth[:250])


def test_the_gate_is_saved_with_the_reward(tmp_path):
    reward = gated()
    conditioning = Conditioning(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)))
    reward.save_pretrained(tmp_path)
    loaded = LatentReward.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.propose(conditioning), reward.propose(conditioning))
    torch.testing.assert_close(reward.propose(conditioning).sum(dim=1), torch.full((2,), 3.0))


def test_auto_samples_as_the_proposed_weights_do(wan):
    reward = gated()
    wan.reward_model = reward
    weights = weights_for_prompt(wan, "a red circle")
    assert str(weights) != str(weights_for_prompt(wan, "a blue square moving left"))
    settings: dict[str, Any] = {"scale": 1e4}
    with attach(wan, reward, weights=weights, **settings):
        expected = sample(wan)
    with attach(wan, reward, weights="auto", **settings) as trace:
        found = sample(wan)
    (proposed,) = json.loads(trace.to_json())["proposed"]
    assert proposed == dict(zip(reward.axes, weights.values, strict=True))
    assert torch.equal(found, expected)
    with attach(wan, reward, weights="1:1:1", **settings):
        assert not torch.equal(sample(wan), expected)


@pytest.mark.parametrize("settings", [{}, {"balanced": True}, {"floor": "TA", "conflicts": "project"}])
def test_each_prompt_of_a_batch_is_guided_by_its_own_weights(settings):
    reward, generator = gated(), torch.Generator().manual_seed(0)
    embeds, latents, velocity = (
        torch.randn(2, *size, generator=generator) for size in ((5, 16), (16, 2, 4, 4), (16, 2, 4, 4))
    )
    proposed = propose_weights(reward, Conditioning(embeds))
    assert (proposed[0] - proposed[1]).abs().max() > 0.1
    guidance = RewardGuidance(weights="auto", scale=1e3, max_push=None, **settings)
    both = guided_velocity(latents, velocity, 0.5, reward, Conditioning(embeds), guidance)
    for row in range(2):
        one = [tensor[row : row + 1] for tensor in (latents, velocity, embeds)]
        own = replace(guidance, weights=[round(weight, 3) for weight in proposed[row].tolist()])
        alone = guided_velocity(one[0], one[1], 0.5, reward, Conditioning(one[2]), own)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-3, atol=1e-4)
        assert (alone - one[1]).abs().max() > 1e-2


def test_says_why_nothing_can_be_proposed(wan):
    latents = torch.zeros(1, 16, 2, 4, 4)
    with pytest.raises(ValueError, match=NO_GATE.format("TowardTarget")):
        guided_velocity(latents, latents, 0.5, TowardTarget(), guidance=RewardGuidance(weights="auto"))
    with pytest.raises(ValueError, match=NO_GATE.format("TowardTarget")), attach(wan, TowardTarget(), weights="auto"):
        raise AssertionError("the reward was taken")
    with pytest.raises(ValueError, match="Expected a prompt for weights='auto', but got none"):
        guided_velocity(latents, latents, 0.5, gated(), guidance=RewardGuidance(weights="auto"))
    with pytest.raises(ValueError, match="Expected weights that are known, but got 'auto'"):
        RewardWeights.parse("auto").resolve(("VQ",))
    assert RewardGuidance(**RewardGuidance(weights="auto").to_dict()) == RewardGuidance(weights=" auto ")


@pytest.fixture(scope="module")
def folders(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    root = tmp_path_factory.mktemp("models")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(root / "wan")
    (root / "wan" / "sampling.json").write_text(json.dumps(SIZE))
    gated().save_pretrained(root / "reward")
    return root / "wan", root / "reward"


def test_the_manifest_holds_the_weights_that_were_proposed(folders, tmp_path, capsys):
    options = ["--model", str(folders[0]), "--reward", str(folders[1])]
    command = ["generate", "a red circle", *options, "--weights", "auto", "--out", str(tmp_path / "auto.mp4")]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    manifest = Manifest.read(tmp_path / "auto.json")
    weights = list(manifest.recipe.guidance.weights.values)
    assert manifest.recipe.proposed
    assert sum(weights) == pytest.approx(3, abs=0.01)
    assert f"weights {RewardWeights(tuple(weights))}, proposed by the reward for this prompt" in shown
    assert cli.main(["generate", "--replay", str(tmp_path / "auto.json")]) == 0
    assert "identical" in capsys.readouterr().out
    assert cli.main([*command, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == weights


def test_the_page_puts_the_sliders_where_they_are_proposed(folders, tmp_path):
    model = Model(str(folders[0]), str(folders[1]))
    studio = studio_of(model, tmp_path)
    view, values = studio.proposal(model.name, REQUEST["prompt"])
    assert values is None
    assert "still loading" in view.status
    studio.engine.open(model.name)
    view, values = studio.proposal(model.name, REQUEST["prompt"])
    assert view.status is None
    assert sum(values) == pytest.approx(3, abs=0.01)
    studio.engine.loaded(model.name).reward_model.gate = None
    view, values = studio.proposal(model.name, REQUEST["prompt"])
    assert values is None
    assert "Expected a reward with a gate" in view.status


def test_the_bundled_stage_adds_a_gate_to_the_reward_and_says_how_good_it_is(tmp_path, monkeypatch):
    from nrg_sampler import NRGFlowPipeline
    from nrg_sampler.shapes.scenes import prompts
    from nrg_sampler.shapes.train import assemble
    from nrg_sampler.shapes.train.pool import Pool
    from nrg_sampler.shapes.train.train_gate import fit_gate
    from nrg_sampler.shapes.train.train_text import attribute_labels

    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 60), ("validation", 20)):
        labels = attribute_labels([prompt for prompt in prompts(split)[:count] for _ in range(4)])
        # big things move badly and every other quality is chance
        quality = torch.rand(4 * count, 3, generator=generator)
        quality[:, 1] = (labels[:, 4] != 0) * 0.8 + 0.1 * quality[:, 1]
        tables = torch.rand(4 * count, 28, generator=generator)
        pool = Pool(torch.zeros(4 * count, 1), labels, torch.arange(4 * count) // 4, quality, tables)
        pool.save(tmp_path / f"pool-sampled-{split}.safetensors")
    pipe = NRGFlowPipeline.from_pretrained("shapes")
    monkeypatch.setattr(assemble, "assemble_pipeline", lambda folder: pipe)
    pipe.reward_model.save_pretrained(tmp_path / "reward")
    (found,) = fit_gate(tmp_path)
    stored = json.loads((tmp_path / "gate-accuracy.json").read_text())
    assert found["MQ"] == stored["MQ"]["rank_correlation"] > 0.5 > abs(found["VQ"])
    assert stored["MQ"]["ceiling"] > 0.8
    assert stored["MQ"]["prompts"] == 20
    reward = LatentReward.from_pretrained(tmp_path / "reward")
    pipe.reward_model = reward
    assert reward.has_gate
    assert weights_for_prompt(pipe, "a red circle moving right").values
    assert "| MQ |" in assemble.reward_card(reward, {"mixed": {}, "same": {}}, stored)
