"""What guidance costs: counted operations against the formula, counted memory against the allocator."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nrg_sampler import cli
from nrg_sampler.cost import counting, prediction, timing, workloads
from nrg_sampler.cost import rows as cost_table
from nrg_sampler.cost import step as cost
from nrg_sampler.cost.prediction import block_costs, predicted_ratio
from nrg_sampler.cost.workloads import WORKLOADS
from nrg_sampler.rewards.latent import LatentReward

SHAPES = WORKLOADS["shapes"]
READING = (
    "num_reads",
    "num_token_reads",
    "num_members",
    "null_tokens",
    "pooling",
    "separate_queries",
    "prompt_in_trunk",
)
USUAL = {name: inspect.signature(LatentReward).parameters[name].default for name in READING}


def shallow(name: str) -> workloads.Workload:
    """A workload at its full width and size with two blocks of each kind, so that building it takes no time."""
    workload = WORKLOADS[name]
    counts = {layers: 2 for layers in ("num_layers", "num_single_layers") if layers in workload.config}
    return replace(workload, config={**workload.config, **counts})


@pytest.fixture
def shallow_shapes(monkeypatch):
    """Let `bench` count and time the bundled workload with half of its blocks, four, of which a reward has one."""
    monkeypatch.setitem(WORKLOADS, "shapes", replace(SHAPES, config={**SHAPES.config, "num_layers": 4}))
    return WORKLOADS["shapes"]


@pytest.mark.parametrize("name", WORKLOADS)
def test_counted_operations_agree_with_the_formula(name):
    unguided, guided, predicted = cost.count_step(shallow(name), 1, False, torch.bfloat16)
    extra = guided.flops / unguided.flops - 1
    assert guided.flops / unguided.flops == pytest.approx(predicted, rel=0.1)
    assert extra > 0.1  # so that the line above says something about the reward


def test_the_bundled_workload_is_the_bundled_model():
    from diffusers import WanTransformer3DModel

    from nrg_sampler.checkpoints import bundled_folder

    config = WanTransformer3DModel.load_config(bundled_folder("pipeline") / "transformer")
    assert {name: tuple(v) if isinstance(v := config[name], list) else v for name in SHAPES.config} == SHAPES.config
    reward = LatentReward.load_config(bundled_folder("reward"))
    assert reward["num_blocks"] == config["num_layers"] // 4
    reading = {name: value for name, value in reward.items() if name in READING}
    assert {**USUAL, **reading} == {**USUAL, **SHAPES.reward}


def test_a_measured_ratio_is_the_median_of_pairs_with_its_interval():
    ratios = torch.tensor([1.1, 1.5, 1.2, 1.3, 1.4])
    (first, second) = (cost_table._timed_ratios(timing.Timed(ratios, ratios + 1), gap) for gap in (1, 2))
    assert first["k_time"] == 1.3
    assert 1.1 <= first["k_time_low"] < 1.3 < first["k_time_high"] <= 1.5
    assert first["k_processor"] == 2.3
    assert second["k_time"] == 1.15
    assert set(cost_table._timed_ratios(None, 1).values()) == {None}


def test_counting_with_fake_tensors_is_counting_the_real_ones(shallow_shapes):
    unguided, guided, _ = cost.count_step(shallow_shapes, 1, False, torch.float32)
    step = cost.Step(shallow_shapes, 1, False, "cpu", torch.float32)
    assert step.conditioning.prepared  # once a run, so it is no part of a step
    real = counting.count(step.guided, step.modules)
    assert real.flops == guided.flops
    assert real.peak_bytes == pytest.approx(guided.peak_bytes, rel=0.01)
    assert guided.peak_bytes > unguided.peak_bytes


def test_the_attention_of_the_processor_is_counted_like_that_of_an_accelerator():
    query, key, value = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=counting.CPU_ATTENTION) as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        forward = counter.get_total_flops()
        attended.sum().backward()
    product = 2 * 2 * 16 * 16 * 8  # heads, queries, keys, width: one of the two products of a forward pass
    assert forward == 2 * product
    assert counter.get_total_flops() - forward == 5 * product  # the backward pass computes the scores again


def test_memory_is_counted_as_the_allocator_sees_it():
    def work():
        kept = [torch.ones(256, 1024) for _ in range(4)]
        total = sum(kept)
        del kept
        return total * 2

    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = sorted(
        (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    held = torch.tensor([event.nbytes() for event in events]).cumsum(0)
    counted = counting.count(work, [])
    assert counted.peak_bytes == pytest.approx(held.max().item(), rel=0.01)


def test_views_and_weights_count_once():
    layer = torch.nn.Linear(1024, 1024)
    counter = counting.MemoryCounter([layer])
    assert counter.peak_bytes == 4 * (1024 * 1024 + 1024)
    with counter:
        layer.weight.t().flatten(0, 0)
    assert counter.peak_bytes == 4 * (1024 * 1024 + 1024)


def test_checkpointing_halves_the_memory_of_a_deep_reward():
    workload = replace(SHAPES, config={**SHAPES.config, "num_layers": 5}, latents=(1, 16, 21, 32, 32))
    plain = cost.count_step(workload, 5, False, torch.float32)[1]
    saving = cost.count_step(workload, 5, True, torch.float32)[1]
    assert saving.peak_bytes < 0.5 * plain.peak_bytes
    assert plain.flops < saving.flops < 1.1 * plain.flops  # attention is not computed again


def test_the_formula_of_the_paper_of_costs():
    block = prediction.BlockCost(linear=10.0, attention=0.0)
    costs = [block] * 8
    assert predicted_ratio(costs, 2, evaluations=2) == pytest.approx(1 + 0.25 * (1 + 1) / 2)
    assert predicted_ratio(costs, 2, evaluations=2, shared=True) == pytest.approx(1 + 0.25 * 1 / 2)
    assert predicted_ratio(costs, 2, evaluations=1, checkpointing=True) == pytest.approx(1 + 0.25 * 3)


def test_block_costs_leave_out_what_does_not_act_on_tokens():
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 32, "num_layers": 1}
    transformer = replace(SHAPES, config={**SHAPES.config, **config}).build()
    (block,) = block_costs(transformer, tokens=100)
    per_token = 16 * 16 * (4 + 2) + 2 * 16 * 32  # self-attention, two of cross-attention, the feed-forward net
    assert block.linear == 2 * 100 * per_token
    assert block.attention == 4 * 100 * 100 * 16


def test_rows_tell_time_operations_and_memory(shallow_shapes, capsys):
    assert cli.main(["bench", "--n", "2", "--json", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["every"] for row in rows] == [1, 2]
    named = {"config", "mode", "every", "k_time", "k_flops", "k_predicted", "peak_memory_mib", "n"}
    assert all(named <= row.keys() for row in rows)
    first, second = rows
    assert first["config"] == "shapes"
    assert first["mode"] == "separate"
    assert first["n"] == 2
    assert first["k_time"] > 0
    assert second["k_flops"] - 1 == pytest.approx((first["k_flops"] - 1) / 2, abs=2e-3)
    assert first["k_time_low"] <= first["k_time"] <= first["k_time_high"]
    assert first["k_processor"] > 0
    assert first["peak_memory_mib"] > first["unguided_memory_mib"] > 0


def test_the_table_says_what_was_not_measured(capsys):
    assert cli.main(["bench", "--n", "0", "--every", "1", "--device", "cpu"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| shapes, 64x64, 13 frames | separate | 1 | 2 | - | 1.2")
    assert line.endswith("counted | none |")


def test_the_table_names_the_part_that_is_read(shallow_shapes, capsys):
    options = ["--mode", "strided", "--frames", "every:3", "--crop", "0.5", "--every", "1", "--n", "1"]
    assert cli.main(["bench", *options, "--device", "cpu"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| shapes, 64x64, 13 frames | strided, frames every:3, crop 0.5 | 1 | 1 | ")
    assert "[" in line


def test_several_videos_at_once_cost_in_proportion(shallow_shapes, capsys):
    rows = {}
    for batch in ("1", "4"):
        assert cli.main(["bench", "--batch", batch, "--n", "0", "--every", "1", "--json", "--device", "cpu"]) == 0
        rows[batch] = json.loads(capsys.readouterr().out)
    one, four = rows["1"], rows["4"]
    assert (one["batch"], four["batch"]) == (1, 4)
    assert four["k_flops"] == pytest.approx(one["k_flops"], abs=5e-3)
    activations = one["peak_memory_mib"] - one["unguided_memory_mib"]
    assert four["peak_memory_mib"] - four["unguided_memory_mib"] > 1.5 * activations
    assert cli.main(["bench", "--batch", "2", "--n", "1", "--every", "1", "--device", "cpu"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("| shapes, 64x64, 13 frames, 2 at once | separate | 1 |")
    )


def test_too_many_blocks_are_refused(capsys):
    assert cli.main(["bench", "--blocks", "9", "--n", "0"]) == 2
    assert "Expected a reward of 1 to 8 blocks for shapes, but got 9." in capsys.readouterr().err


def test_a_video_of_another_size():
    wan = WORKLOADS["wan-1.3b"].sized(240, 416, 33)
    assert wan.latents == (1, 16, 9, 30, 52)
    assert wan.tokens == 9 * 15 * 26
    assert "240x416, 33 frames" in wan.about
    usual = WORKLOADS["wan-1.3b"]
    assert usual.sized(480, 832, 81) == usual
    assert SHAPES.sized(64, 64, 13) == SHAPES
    for size in ((240, 416, 32), (244, 416, 33), (0, 416, 33)):
        with pytest.raises(ValueError, match="Expected a height and width that are multiples of 16"):
            usual.sized(*size)
    for name in ("flux", "sd3", "ltx"):
        with pytest.raises(ValueError, match=f"Expected a config of videos .* but got {name}"):
            WORKLOADS[name].sized(256, 256, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell the peak of a process")
def test_the_process_grows_by_what_is_counted(capsys):
    command = ["bench", "--config", "shapes", "--batch", "48", "--every", "1", "--n", "0", "--json"]
    assert cli.main(command) == 0
    counted = json.loads(capsys.readouterr().out)
    giving_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes to the system at once
    run = [sys.executable, "-m", "nrg_sampler", *command, "--weigh"]
    measured = json.loads(subprocess.run(run, check=True, capture_output=True, env=giving_back).stdout)
    assert (counted["memory"], measured["memory"]) == ("counted", "measured")
    assert measured["k_time"] is None
    assert measured["k_flops"] == counted["k_flops"]
    assert measured["peak_memory_mib"] == pytest.approx(counted["peak_memory_mib"], rel=0.15)
    assert measured["unguided_memory_mib"] < 0.5 * measured["peak_memory_mib"]


def test_a_size_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--size", "240x416"])
    assert "expected HEIGHTxWIDTHxFRAMES, as 240x416x33, but got '240x416'" in capsys.readouterr().err


@pytest.mark.parametrize(("compiled", "expected"), [("reward", 1), ("both", 2), (None, 0)])
def test_what_is_compiled_before_it_is_timed(compiled, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: calls.append(type(module).__name__))
    workload = shallow("shapes")
    rows = list(cost_table.cost_rows(workload, 1, compiled=compiled, dtype=torch.float32, n=1))
    assert calls == ["LatentReward", "WanTransformer3DModel"][:expected]
    assert [row.compiled for row in rows] == [compiled] * 2
    assert all(row.compiled is None for row in cost_table.cost_rows(workload, 1, compiled=compiled, n=0))


def test_a_compiled_graph_takes_no_hooks():
    with pytest.raises(ValueError, match="Expected mode 'separate' with compiled='both', but got 'shared'"):
        next(cost_table.cost_rows(SHAPES, mode="shared", compiled="both"))
