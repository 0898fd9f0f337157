"""What rewards on pixels cost, counted: against what a real gradient takes, and as the commands print it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from torch.utils.flop_counter import FlopCounterMode

from nrg_sampler import NRGFlowPipeline, RewardGuidance, cli
from nrg_sampler.cost import pixels
from nrg_sampler.cost.counting import MemoryCounter
from nrg_sampler.cost.pixels import OneSquareReward, gradient_of, pixel_costs, video_shape
from nrg_sampler.cost.published import JUDGES, vae_of
from nrg_sampler.cost.workloads import WORKLOADS
from nrg_sampler.rewards.by_name import reward_for
from nrg_sampler.rewards.named.table import TABLE
from nrg_sampler.runs import plan
from nrg_sampler.runs.recipe import Recipe

SHAPE = (1, 16, 4, 6, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_named.write("pickscore", tmp_path_factory.mktemp("pickscore"))


@pytest.fixture
def reward(wan: Any, folder: Path) -> Any:
    found = reward_for(wan, f"pickscore:{folder}")
    found.tile, found.margin = 4, 2
    return found


def really(reward: Any, frames: str) -> tuple[int, int]:
    """Operations and peak of a gradient that is taken for real, the weights left out."""
    chosen = range(2, 3) if frames == "middle" else None

    def gradient() -> Any:
        read = torch.randn(SHAPE).requires_grad_()
        scores = reward.score_frames(reward.frames(1 * read, chosen), ["a prompt"])
        return torch.autograd.grad(scores.sum(), read)

    gradient()
    flops = FlopCounterMode(display=False)
    with flops:
        gradient()
    with MemoryCounter([reward]) as memory:
        gradient()
    return flops.get_total_flops(), memory.peak_bytes - sum(weight.numel() * 4 for weight in reward.parameters())


@pytest.mark.parametrize("frames", ["middle", pytest.param("all", marks=pytest.mark.slow)])
def test_one_square_counts_for_all_of_them(reward: Any, frames: str) -> None:
    flops, peak = really(reward, frames)
    counted = gradient_of(reward, SHAPE, RewardGuidance(frames=frames))
    assert counted.flops == pytest.approx(flops, rel=0.05)
    assert counted.working == pytest.approx(peak, rel=0.25)
    assert counted.judge == sum(weight.numel() * 4 for weight in reward.judge.parameters())


def test_squares_are_counted_by_their_area(reward: Any) -> None:
    twin = OneSquareReward(reward.judge, reward.decoder.vae, reward.axes, tile=4, margin=2)
    # 10 latents are squares of 4, 4 and 2, with 2 on each side that is not the rim: 6, 8 and 4
    assert twin.squares(10, 10) == (6 + 8 + 4) ** 2 / 8**2
    assert OneSquareReward(reward.judge, reward.decoder.vae, reward.axes, tile=None).squares(10, 10) == 1


@pytest.mark.slow
def test_few_frames_cost_less_and_an_offloaded_judge_does_not_stay(reward: Any) -> None:
    every, few = (gradient_of(reward, SHAPE, RewardGuidance(frames=frames)) for frames in ("all", "turns"))
    assert few.flops < 0.8 * every.flops and few.working < every.working
    away = gradient_of(reward, SHAPE, RewardGuidance(frames="turns", offload=True))
    assert away.judge == 0 and away.flops == few.flops
    assert {weight.device.type for weight in reward.judge.parameters()} == {"cpu"}


def test_latents_are_those_of_the_autoencoders() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        shapes = {name: video_shape(WORKLOADS[name], vae_of(name)) for name in ("wan-1.3b", "ltx", "sd3", "flux")}
    assert shapes == {
        "wan-1.3b": (1, 16, 21, 60, 104),
        "ltx": (1, 128, 21, 16, 22),
        "sd3": (1, 16, 1, 128, 128),
        "flux": (1, 16, 1, 128, 128),
    }
    with pytest.raises(ValueError, match="a published autoencoder .*, but got shapes"):
        vae_of("shapes")


@pytest.mark.slow
def test_the_command_counts_named_rewards(
    reward: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import copy

    small = replace(WORKLOADS["wan-1.3b"], latents=SHAPE, config={**WORKLOADS["wan-1.3b"].config, "num_layers": 1})
    monkeypatch.setitem(WORKLOADS, "wan-1.3b", small)
    monkeypatch.setattr(pixels, "vae_of", lambda name: copy.deepcopy(reward.decoder.vae))
    monkeypatch.setattr(pixels, "judge_of", lambda entry: copy.deepcopy(reward.judge))
    options = ["--config", "wan-1.3b", "--reward", "pick", "--every", "1", "2"]
    assert cli.main(["bench", *options, "--offload", "--json"]) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["reward"], one["frames"], one["offload"]) == ("pickscore", "turns", True)
    assert two["k_flops"] - 1 == pytest.approx((one["k_flops"] - 1) / 2, abs=2e-3)
    (here,) = pixel_costs(small, ["pickscore"], RewardGuidance(), every=(1,))
    assert here.k_flops == one["k_flops"] and here.peak_memory_mib >= one["peak_memory_mib"]
    assert cli.main(["bench", *options, "--frames", "all", "--half"]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("| wan-1.3b, 480x832, 81 frames | `pickscore`, half | all | 2 | ") and line.endswith(
        "| yes |"
    )
    assert cli.main(["bench", "--config", "wan-1.3b", "--reward", "vlm"]) == 2


def test_every_image_reward_of_the_table_is_counted() -> None:
    assert JUDGES.keys() >= {entry.name for entry in TABLE if entry.fit != "area"}


@pytest.mark.slow
def test_a_plan_counts_a_named_reward(wan: Any, folder: Path) -> None:
    pipe = NRGFlowPipeline.from_pipe(wan, reward_model=f"pickscore:{folder}")
    sampling = {"num_inference_steps": 9, "height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 8}
    recipe = Recipe("a", RewardGuidance.preset("best"), sampling, "tiny", None, "cpu", "float32", None)
    everything = replace(recipe, guidance=RewardGuidance.preset("best", frames="all"))
    few, all_of_them = (plan.plan(pipe, one, memory=plan.count_memory(pipe, one)) for one in (recipe, everything))
    assert 1 < few.ratio < all_of_them.ratio
    assert few.needed_mb is not None and all_of_them.needed_mb is not None
    assert few.needed_mb < all_of_them.needed_mb
