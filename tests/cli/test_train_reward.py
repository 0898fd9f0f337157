"""`train-reward` and `evaluate-reward` on a tiny random Wan and real video files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nrg_sampler import LatentReward, NRGFlowPipeline, cli
from nrg_sampler.training import trainer
from nrg_sampler.video import write_mp4

ROOT = Path(__file__).parents[2]
PROMPTS = ("a red circle", "a blue square", "a red square moving left", "a blue circle moving right")
SHORT = shlex.split("--steps 4 --batch 4 --blocks 1 --save-every 2 --lr 1e-2 --warmup 0 --cpu")
SHORT += shlex.split("--dtype float32 --mixed-precision no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, components):
    """A tiny pipeline, ten clips and a preference file with four bad rows."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    folder = tmp_path_factory.mktemp("train")
    pipe = WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler())
    pipe.save_pretrained(folder / "tiny")
    sizes = {"height": 16, "width": 16, "num_frames": 3, "fps": 8, "max_sequence_length": 8}
    (folder / "tiny" / "sampling.json").write_text(json.dumps(sizes))
    rng = np.random.default_rng(0)
    for index in range(10):
        write_mp4(rng.integers(0, 255, (4, 16, 24, 3), dtype=np.uint8), folder / f"{index}.mp4", 8)
    (folder / "broken.mp4").write_text("no video")
    lines = ["path_A,path_B,prompt,VQ,MQ,TA,fps_A,num_frames_A,fps_B,num_frames_B"]
    for index in range(20):
        label = ",".join(("A", "B", "same", "invalid")[(index * step) % 4] for step in (1, 3, 2))
        label = label if label != "invalid,invalid,invalid" else "A,B,A"
        lines.append(f"{index % 10}.mp4,{(index * 3 + 1) % 10}.mp4,{PROMPTS[index // 5]},{label},8,4,8,4")
    lines += [
        "0.mp4,gone.mp4,a red circle,A,A,A,8,4,8,4",
        "0.mp4,2.mp4,a red circle,A,A,A,25,4,8,4",
        "0.mp4,broken.mp4,a red circle,A,A,A,8,4,8,4",
        "2.mp4,5.mp4,a green zebra,A,A,A,8,4,8,4",
    ]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder


def train(folder, out, *more):
    pairs, model = str(folder / "pairs.csv"), str(folder / "tiny")
    options = ["--model", model, "--out", str(folder / out), "--cache", str(folder / "cache"), "--hold-out", "0.2"]
    return cli.main(["train-reward", pairs, *options, *SHORT, *more])


@pytest.fixture(scope="module")
def trained(folder):
    assert train(folder, "single") == 0
    return folder / "single"


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "training.jsonl").read_text().splitlines()]


def test_trains_on_what_is_good_and_lists_the_rest(folder, trained, capsys):
    assert train(folder, "single", "--json") == 0  # finished already: goes on from the last checkpoint
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    reasons = " ".join(bad["reason"] for bad in report["bad_rows"])
    for words in ("gone.mp4, which does not exist", "states 25 frames", "broken.mp4 cannot be decoded", "'green'"):
        assert words in reasons
    assert captured.err.count("left out: row") == len(report["bad_rows"]) >= 4
    assert report["pairs"] > 4
    assert report["held_out"] > 0
    assert len(losses(trained)) == 4


def test_writes_a_reward_that_guides_and_says_where_it_comes_from(folder, trained):
    reward = LatentReward.from_pretrained(trained / "reward")
    assert reward.axes == ("VQ", "MQ", "TA")
    assert all(std > 0 for std in reward.std)
    card = (trained / "reward" / "README.md").read_text()
    assert "tiny; the trunk is its first 1" in card
    assert "pairs.csv" in card
    assert "| sigma | VQ | MQ | TA |" in card
    assert str(folder) not in card
    pipe = NRGFlowPipeline.from_pretrained(folder / "tiny", reward_model=reward)
    pipe.set_progress_bar_config(disable=True)
    pipe("a red circle", num_inference_steps=2, output_type="latent", reward_scale=1.0)
    assert any(row.get("push_ratio", 0) > 0 for row in pipe.trace.rows())


def test_the_same_command_gives_the_same_losses(folder, trained):
    assert train(folder, "again") == 0
    assert losses(folder / "again") == losses(trained)


def test_strict_stops_instead(folder, capsys):
    assert train(folder, "strict", "--strict") == 2
    error = capsys.readouterr().err
    read, refused = error.splitlines()
    assert read == "nrg-sampler: pairs.csv: axes VQ, MQ, TA; 24 rows, 1 left out"
    assert "Expected every row of the preference file to be usable" in refused


def test_a_loss_that_is_not_finite_is_one_line_and_exit_1(folder, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "_step", lambda *_: {"loss": float("nan"), "grad_norm": 1.0})
    assert train(folder, "diverged") == 1
    assert "nrg-sampler: error: Expected a finite loss" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "diverged" / "reward").exists()


def test_a_full_disk_is_one_line_and_exit_1(folder, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("torch.save", fail)
    assert train(folder, "full") == 1
    assert "nrg-sampler: error: Expected room to write" in capsys.readouterr().err.splitlines()[-1]


def test_corrected_labels_are_refused_and_the_same_command_is_not(folder, trained, capsys):
    assert train(folder, "single", "--json") == 0
    captured = capsys.readouterr()
    assert "already trained for 4 steps, nothing to do" in captured.err
    report = json.loads(captured.out)
    assert report["already_trained"] is True
    assert report["loss"] is None
    text = (folder / "pairs.csv").read_text()
    try:
        (folder / "pairs.csv").write_text(text.replace(",A,", ",B,", 1))
        assert train(folder, "single") == 2
    finally:
        (folder / "pairs.csv").write_text(text)
    assert "but these differ: the labels; repeat what they were" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--frames", "4"], "Expected `num_frames` to be 1 more than a multiple of 2"),
        (["--height", "18"], "Expected `height` to be a multiple of 4"),
        (["--blocks", "9"], "Expected `num_blocks` between 1 and 1"),
        (["--hold-out", "1"], "Expected pairs to train on, but `hold_out` 1"),
        (["--axes", "fun"], "Expected the column fun"),
        (["--prompt-dropout", "2"], "Expected `prompt_dropout` from 0 to below 1"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, more, words):
    assert train(folder, "bad", *more) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_other_axes_and_lora_on_clean_latents(folder):
    more = ["--axes", "MQ", "--trunk", "lora", "--lora-rank", "2", "--clean", "--pooling", "mean", "--shared-query"]
    assert train(folder, "lora", *more) == 0
    reward = LatentReward.from_pretrained(folder / "lora" / "reward")
    assert reward.axes == ("MQ",)
    assert reward.config.about["training"]["trunk"] == "lora"
    assert not any("lora_" in name for name in reward.state_dict())


def test_evaluates_with_and_without_ties(folder, trained, capsys):
    pairs, model = str(folder / "pairs.csv"), str(folder / "tiny")
    command = [
        "evaluate-reward",
        pairs,
        "--model",
        model,
        "--out",
        str(folder / "accuracy"),
        "--cpu",
        "--dtype",
        "float32",
    ]
    command += ["--cache", str(folder / "cache"), "--reward", str(trained / "reward")]
    assert cli.main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    figures = result["rewards"][0]["axes"]["VQ"]
    assert 0 <= figures["without_ties"] <= 1
    assert 0 <= figures["ece"] <= 1
    assert figures["ties"] > 0
    assert figures["with_ties_in_sample"] >= figures["ties"] / figures["pairs"]
    assert set(figures["by_sigma"]) == {"0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0"}
    assert (folder / "accuracy" / "differences.png").stat().st_size > 1000
    assert "| VQ |" in (folder / "accuracy" / "accuracy.md").read_text()
    assert train(folder, "half", "--fraction", "0.5") == 0
    assert cli.main([*command, str(folder / "half" / "reward"), "--held-out", "0.2"]) == 0
    assert (folder / "accuracy" / "fractions.png").stat().st_size > 1000


def test_refuses_to_grade_a_reward_of_another_latent_space(folder, trained, tmp_path, capsys):
    reward = LatentReward.from_pretrained(trained / "reward")
    reward.register_to_config(latent_space={**reward.config.latent_space, "vae": "AutoencoderKLMochi"})
    reward.save_pretrained(tmp_path / "other")
    command = ["evaluate-reward", str(folder / "pairs.csv"), "--model", str(folder / "tiny"), "--cpu"]
    assert cli.main([*command, "--reward", str(tmp_path / "other"), "--out", str(tmp_path)]) == 2
    assert "Expected a VAE with `vae` AutoencoderKLMochi" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_loss_of_one(folder, trained):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "-m", "nrg_sampler", "train-reward"]
    options = ["--model", str(folder / "tiny"), "--out", str(folder / "double"), "--cache", str(folder / "cache")]
    command = [*launch, str(folder / "pairs.csv"), *options, "--hold-out", "0.2", *SHORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(folder / "double") == pytest.approx(losses(trained), abs=1e-4)
    assert (folder / "double" / "reward" / "config.json").is_file()
