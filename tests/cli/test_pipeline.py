"""The command line with a real, tiny Wan folder and a reward of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nrg_sampler import cli
from nrg_sampler.runs.manifest import Manifest

SIZE = ["--height", "16", "--width", "16", "--frames", "3", "--steps", "3"]


@pytest.fixture(scope="module")
def folders(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pipeline folder and a reward folder, as `save_pretrained` writes them."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    from nrg_sampler import LatentReward

    root = tmp_path_factory.mktemp("models")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(root / "wan")
    (root / "wan" / "sampling.json").write_text('{"num_inference_steps": 9, "max_sequence_length": 8, "fps": 5}')
    torch.manual_seed(0)
    LatentReward.from_transformer(components["transformer"], num_blocks=1).save_pretrained(root / "reward")
    return root / "wan", root / "reward"


@pytest.fixture
def model(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--model", str(folders[0]), "--reward", str(folders[1])]


def test_generate_then_replay_gives_the_identical_frames(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a red circle", *model, *SIZE, "--seed", "2", "--out", "first.mp4"]) == 0
    manifest = Manifest.read(Path("first.json"))
    assert manifest.recipe.sampling["max_sequence_length"] == 8
    assert manifest.recipe.sampling["num_inference_steps"] == 3
    assert manifest.recipe.fps == 5
    assert manifest.fingerprints.keys() == {"model", "reward"}
    (clip,) = manifest.clips
    assert clip.shape == (3, 16, 16, 3)
    assert len(clip.trace) == 3
    assert clip.scores["reward"].keys() == {"VQ", "MQ", "TA"}
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "first.json"]) == 0
    assert "identical" in capsys.readouterr().out


def test_saving_memory_changes_no_frame_and_is_replayed(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nrg_sampler.rewards import latent

    calls, recomputed = [], latent.recomputed
    monkeypatch.setattr(latent, "recomputed", lambda *args: calls.append(1) or recomputed(*args))
    for name, options in {"plain": [], "saving": ["--checkpointing"]}.items():
        assert cli.main(["generate", "a red circle", *model, *SIZE, *options, "--out", f"{name}.mp4"]) == 0
        assert Manifest.read(Path(f"{name}.json")).recipe.checkpointing == bool(calls)
    plain, saving = (Manifest.read(Path(f"{name}.json")).clips[0] for name in ("plain", "saving"))
    guided = sum("skipped" not in step or not step["skipped"] for step in saving.trace)
    assert saving.sha256 == plain.sha256
    assert len(calls) == guided > 0
    assert cli.main(["generate", "--replay", "saving.json"]) == 0
    assert "identical" in capsys.readouterr().out
    assert len(calls) == 2 * guided


def test_a_replay_with_another_reward_differs_and_names_its_files(
    model: list[str], folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from nrg_sampler import LatentReward

    changed = LatentReward.from_pretrained(folders[1])
    with torch.no_grad():
        changed.patch_embedding.weight.neg_()
    changed.save_pretrained("reward")
    cli.main(["generate", "a red circle", *model, *SIZE, "--scale", "10000", "--out", "first.mp4"])
    manifest = json.loads(Path("first.json").read_text())
    Path("first.json").write_text(json.dumps({**manifest, "reward": "reward"}))
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "first.json"]) == 1
    out = capsys.readouterr().out
    assert "the frames differ" in out
    assert "What changed: reward files" in out


def test_the_unguided_half_of_a_comparison_is_the_stock_pipeline(model: list[str], wan: Any) -> None:
    from nrg_sampler.video import frames_sha256, to_uint8

    assert cli.main(["compare", "a red circle", *model, *SIZE, "--seed", "4", "--out", "pair.mp4"]) == 0
    unguided, guided = Manifest.read(Path("pair.json")).clips
    frames = wan(
        "a red circle",
        height=16,
        width=16,
        num_frames=3,
        num_inference_steps=3,
        max_sequence_length=8,
        generator=torch.Generator().manual_seed(4),
        output_type="np",
    ).frames[0]
    assert unguided.sha256 == frames_sha256(to_uint8(frames))
    assert unguided.trace == []
    assert guided.trace


def test_scale_0_needs_no_reward(model: list[str]) -> None:
    assert cli.main(["generate", "a red circle", *model[:2], *SIZE, "--scale", "0", "--out", "a.mp4"]) == 0
    (clip,) = Manifest.read(Path("a.json")).clips
    assert clip.scores == {}
    assert clip.trace == []


def test_plan_counts_evaluations_and_writes_no_video(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*SIZE[:-2], "--steps", "10", "--stop", "0.5", "--guidance-scale", "5"]
    assert cli.main(["generate", "a red circle", *model, *settings, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["steps"], plan["guided_steps"], plan["evaluations"]) == (10, 5, 20)
    assert plan["ratio"] == pytest.approx(1 + plan["reward_evaluations"] / 20, abs=0.01)
    assert plan["seconds"] > plan["unguided_seconds"] > 0
    assert plan["memory_mb"] > plan["weights_mb"]
    assert not list(Path().glob("outputs/*"))
    cli.main(["generate", "a red circle", *model, *settings, "--plan"])
    assert "10 steps, 20 evaluations" in capsys.readouterr().out


def test_plan_counts_every_seed(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "a red circle", *model, *SIZE, "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["videos"], plan["paired"]) == (4, True)
    assert plan["all_seconds"] == pytest.approx(4 * (plan["seconds"] + plan["unguided_seconds"]), abs=0.1)
    cli.main(["generate", "a red circle", *model, *SIZE, "--num", "3", "--plan"])
    assert "3 videos: about" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "steps"), [("unipc", 3), ("heun", 5)])
def test_another_scheduler_is_in_the_manifest_and_in_its_replay(
    name: str, steps: int, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a red circle", *model, *SIZE]
    assert cli.main([*command, "--out", "own.mp4"]) == 0
    assert cli.main([*command, "--scheduler", name, "--out", "other.mp4"]) == 0
    (own,), (other,) = (Manifest.read(Path(f"{run}.json")).clips for run in ("own", "other"))
    assert other.sha256 != own.sha256
    assert len(other.trace) == steps
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "other.json"]) == 0
    assert "identical" in capsys.readouterr().out


def test_the_oracle_scores_a_rendered_clip_of_the_bundled_world() -> None:
    import random

    from nrg_sampler.runs.sampler import oracle_scores
    from nrg_sampler.shapes.render import draw, render
    from nrg_sampler.shapes.scenes import Prompt, caption, sample_scene
    from nrg_sampler.video import to_uint8

    right = Prompt("star", "green", "right", "plain")
    clip = render(draw([sample_scene(right, random.Random(0))]))[0]  # (3, T, H, W)
    frames = to_uint8(clip.permute(1, 2, 3, 0).numpy())
    assert oracle_scores(frames[:3], caption(right)) is None  # too short, and not square: neither ends a run
    assert oracle_scores(frames[:, :32], caption(right)) is None
    asked = oracle_scores(frames, caption(right))
    wrong = oracle_scores(frames, caption(Prompt("star", "red", "left", "plain")))
    assert asked is not None
    assert wrong is not None
    assert asked["TA"] > 0.8 > wrong["TA"]
    assert asked["VQ"] == wrong["VQ"]
    assert oracle_scores(frames, "the weather tomorrow") is None


@pytest.mark.filterwarnings("default:The judge oracle")
def test_a_judge_that_cannot_grade_a_clip_does_not_cost_it(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "a red circle moving right", *model, *SIZE, "--judge", "oracle", "--out", "short.mp4"]
    assert cli.main(command) == 0
    assert "The judge oracle gave no scores. Expected clips of shape" in capsys.readouterr().err
    (clip,) = Manifest.read(Path("short.json")).clips
    assert clip.scores.keys() == {"reward"}


BAD_MODELS = {
    "no such folder": (["--model", "./nowhere"], "Expected a diffusers pipeline in './nowhere'"),
    "no such reward": (["--reward", "./nowhere"], "Expected a reward in './nowhere'"),
    "weights for other axes": (["--weights", "1:1"], "Expected 3 reward weights (VQ:MQ:TA), but got 2"),
    "unknown axis": (["--weights", "beauty=1"], "Expected weights for the axes VQ, MQ, TA, but got beauty"),
    "unknown words": (["--scale", "0"], "Expected words that the model was trained on, but got 'dinosaur'"),
    "damaged weights": (["--reward", "damaged"], "Expected a complete file in damaged"),
    "no such device": (["--device", "toaster"], "a device that is present, but got 'toaster'; try --device cpu"),
}


def test_a_missing_reward_is_found_out_before_the_unguided_video(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "a dinosaur", *model[:2], *SIZE]) == 2  # sampling would stumble over the prompt
    assert "comes without one; name its folder with --reward" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_model_or_reward_that_does_not_fit_is_one_line_and_exit_code_2(
    options: list[str],
    message: str,
    model: list[str],
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    shutil.copytree(folders[1], "damaged")
    weights = Path("damaged/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    prompt = "a red dinosaur" if "dinosaur" in message else "a red circle"
    assert cli.main(["generate", prompt, *model, *SIZE, *options]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("nrg-sampler: error: ")
    assert message in last
    assert not list(Path().glob("outputs/*"))


def test_the_best_of_several_seeds_is_the_one_the_reward_prefers(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from nrg_sampler.search import candidate_seeds

    options = [*model, *SIZE, "--weights", "1:2:0", "--scale", "0"]
    assert cli.main(["generate", "a red circle", *options, "--seed", "2", "--best-of", "3", "--out", "best.mp4"]) == 0
    best = Manifest.read(Path("best.json"))
    scores = {}
    for seed in candidate_seeds(2, 3):
        cli.main(["generate", "a red circle", *options, "--seed", str(seed), "--out", f"{seed}.mp4"])
        (clip,) = Manifest.read(Path(f"{seed}.json")).clips
        scores[clip.sha256] = clip.scores["reward"]["VQ"] + 2 * clip.scores["reward"]["MQ"]
    assert best.clips[0].sha256 == max(scores, key=lambda sha: scores[sha])
    assert best.recipe.search == {
        "candidates": 3,
        "moments": [],
        "temperature": 1.0,
        "weights": [1.0, 2.0, 0.0],
        "noise": 0.0,
    }
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "best.json"]) == 0
    assert "identical" in capsys.readouterr().out


def test_a_search_on_the_way_is_replayed_and_planned(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a red circle", *model, *SIZE, "--search", "--best-of", "4", "--out", "a.mp4"]) == 0
    manifest = Manifest.read(Path("a.json"))
    assert manifest.recipe.search
    assert manifest.recipe.search["moments"] == [0.2, 0.3, 0.4]
    assert len(manifest.clips) == 1
    assert manifest.clips[0].scores["reward"].keys() == {"VQ", "MQ", "TA"}
    assert manifest.clips[0].trace
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "a.json"]) == 0
    assert "identical" in capsys.readouterr().out
    settings = [*SIZE[:-2], "--steps", "10", "--guidance-scale", "5", "--best-of", "4", "--floor", "TA"]
    settings += ["--preset", "best", "--json"]
    plans = {}
    for weights in ("1:0:0", "0:0:1"):
        assert cli.main(["generate", "a red circle", *model, *settings, "--weights", weights, "--plan"]) == 0
        plans[weights] = json.loads(capsys.readouterr().out)
    assert (plans["1:0:0"]["candidates"], plans["1:0:0"]["evaluations"], plans["1:0:0"]["gradients"]) == (4, 80, 10)
    # One pass forward and one back, against one forward and one back for each of two axes. A pass back takes between
    # once (linear layers) and two and a half times (attention) as much as one forward.
    assert 3 / 2 < plans["1:0:0"]["reward_evaluations"] / plans["0:0:1"]["reward_evaluations"] < 6 / 3.5
    assert plans["0:0:1"]["ratio"] == pytest.approx(4 + plans["0:0:1"]["reward_evaluations"] / 20, abs=0.01)


def test_a_search_without_a_reward_is_refused(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [*model[:2], *SIZE, "--scale", "0", "--best-of", "2"]
    assert cli.main(["generate", "a red circle", *options]) == 2
    assert "Expected a reward to choose candidates by, but" in capsys.readouterr().err


def test_look_ahead_samples_pull_a_clip_without_a_gradient_and_it_is_replayed(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*model, *SIZE, "--scale", "0", "--seed", "3"]
    assert cli.main(["generate", "a red circle", *options, "--out", "plain.mp4"]) == 0
    looking = ["--lidar", "reward samples=3 steps=2 scale=20", "--weights", "1:0:0"]
    capsys.readouterr()
    assert cli.main(["generate", "a red circle", *options, *looking, "--out", "pulled.mp4"]) == 0
    assert "3 look-ahead samples, scored" in (said := capsys.readouterr().out)
    assert "K about 3.00" in said
    plain, pulled = (Manifest.read(Path(f"{name}.json")) for name in ("plain", "pulled"))
    assert pulled.clips[0].sha256 != plain.clips[0].sha256
    assert plain.recipe.lookahead is None
    assert pulled.recipe.lookahead.settings.to_dict()["weights"] == "1:0:0"
    assert len(pulled.clips[0].lookahead["scores"][0]) == 3
    assert cli.main(["generate", "--replay", "pulled.json"]) == 0
    assert "identical" in capsys.readouterr().out
    assert cli.main(["generate", "a red circle", *options, *looking, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluations"] == 3 * 3 * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--lidar", "reward scales=2"], "Expected who scores the look-ahead samples and settings"),
        (["--lidar", "samples=2"], "Expected who scores the look-ahead samples and settings"),
        (["--lidar", "reward samples=1"], "Expected `samples` to be a whole number of 2 or more"),
        (["--lidar", "nobody"], "Expected a judge from"),
        (["--lidar", "reward", "--best-of", "2"], "Expected --lidar or a search, but got both"),
    ],
)
def test_look_ahead_samples_that_nobody_scores_are_refused(
    given: list[str], message: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "a red circle", *model, *SIZE, *given]) == 2
    assert message in capsys.readouterr().err
