"""``nrg-sampler calibrate``: what it measures is what was sampled, and the file guides as hard as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch

from nrg_sampler import NRGFlowPipeline, attach, cli
from nrg_sampler.rewards.by_name import reward_for
from nrg_sampler.rewards.calibration import Calibration
from nrg_sampler.runs.calibrate import calibrate
from nrg_sampler.runs.manifest import Manifest

SIZE = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "6"]
CALL = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 6, "max_sequence_length": 8}


@pytest.fixture(scope="module")
def folders(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    root = tmp_path_factory.mktemp("models")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(root / "wan")
    (root / "wan" / "sampling.json").write_text('{"max_sequence_length": 8, "fps": 5}')
    (root / "pickscore").mkdir()
    (root / "prompts.txt").write_text("a red circle\n\na blue square\n")
    return {"wan": root / "wan", "pickscore": tiny_named.write("pickscore", root / "pickscore"), "root": root}


@pytest.fixture
def calibrated(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Any]:
    file = tmp_path / "pick.json"
    options = ["--model", str(folders["wan"]), "--prompts", str(folders["root"] / "prompts.txt"), "--out", str(file)]
    counts = ["--n", "3", "--probes", "2", "--share", "0.1", "--json"]
    assert cli.main(["calibrate", f"pickscore:{folders['pickscore']}", *options, *counts, *SIZE]) == 0
    return file, json.loads(capsys.readouterr().out)


def sampled(pipe: Any, seed: int, prompt: str, **options: Any) -> Any:
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **CALL, **options)


def test_mean_and_deviation_are_those_of_the_models_samples(
    calibrated: tuple[Path, Any], folders: dict[str, Path]
) -> None:
    file, printed = calibrated
    found = Calibration.read(file)
    assert {**found.to_dict(), "file": str(file)} == {
        **printed, **{name: tuple(printed[name]) for name in ("axes", "mean", "std")},
    }  # fmt: skip
    assert (found.n, found.probes, found.share, found.frames) == (3, 2, 0.1, "turns")
    pipe = NRGFlowPipeline.from_pretrained(folders["wan"], reward_model=None)
    reward = reward_for(pipe, found.reward)
    scores = []
    for seed, prompt in enumerate(("a red circle", "a blue square", "a red circle")):
        frames = sampled(pipe, seed, prompt, reward_scale=0, output_type="pt").frames.transpose(1, 2)
        shown = frames[:, :, [2 * (2 * seed % 3)]]  # three latent frames in turns, of two frames each
        scores.append(reward.score_frames(shown, [prompt])[0])
    together = torch.stack(scores).double()
    assert found.mean == pytest.approx(together.mean(dim=0).tolist(), rel=1e-4)
    assert found.std == pytest.approx(together.std(dim=0).tolist(), rel=1e-3)


def test_the_file_guides_as_hard_as_it_says(calibrated: tuple[Path, Any], folders: dict[str, Path]) -> None:
    file, _ = calibrated
    found = Calibration.read(file)
    pipe = NRGFlowPipeline.from_pretrained(folders["wan"], reward_model=None)
    pushes = []
    for seed, prompt in enumerate(("a red circle", "a blue square")):
        with attach(pipe, file, stop=1 / 3, every=1, max_push=None) as trace:
            sampled(pipe, seed, prompt, reward_scale=0, output_type="latent")
        pushes += [row["push_ratio"] for row in trace.rows() if row["skipped"] is None]
    assert sum(pushes) / len(pushes) == pytest.approx(found.share, rel=0.2)  # the first push moves what comes after
    reward = reward_for(pipe, file)
    assert (reward.mean, reward.std) == (found.mean, found.std)
    assert reward.recommended_scale == found.recommended_scale
    assert reward.recommended_frames == "turns"


def test_the_file_is_a_reward_on_the_command_line(calibrated: tuple[Path, Any], folders: dict[str, Path]) -> None:
    file, _ = calibrated
    out = file.with_name("a.mp4")
    model = ["--model", str(folders["wan"]), "--reward", str(file)]
    assert cli.main(["generate", "a red circle", *model, *SIZE, "--set", "frames=middle", "--out", str(out)]) == 0
    manifest = Manifest.read(out.with_suffix(".json"))
    assert manifest.recipe.reward == str(file)
    assert manifest.recipe.guidance.frames == "middle"
    assert manifest.fingerprints.keys() == {"model", "reward", "calibration"}


def test_bad_input_is_one_sentence(
    folders: dict[str, Path], calibrated: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wan, pick = str(folders["wan"]), f"pickscore:{folders['pickscore']}"
    (tmp_path / "empty.txt").write_text("\n")
    for options, message in (
        ([pick, "--model", wan], "Expected --prompts with a file of prompts for"),
        ([pick, "--model", wan, "--prompts", str(tmp_path / "empty.txt")], "but it is empty; write some"),
        (["pickscor", "--model", wan, "--prompts", str(folders["root"] / "prompts.txt")], "did you mean 'pickscore'"),
    ):
        assert cli.main(["calibrate", *options]) == 2
        assert message in capsys.readouterr().err
    file, _ = calibrated
    for wrong, message in (
        ({"std": [0.0]}, "Expected `std` of"),
        ({"mean": [0.0, 1.0]}, "one mean and deviation for each axis"),
        ({"axes": ["VQ"]}, "Expected a reward with the axes VQ, as it was calibrated, but"),
    ):
        values = {**json.loads(file.read_text()), **wrong}
        (tmp_path / "wrong.json").write_text(json.dumps(values))
        pipe = NRGFlowPipeline.from_pretrained(wan, reward_model=None)
        with pytest.raises(ValueError, match=message):
            reward_for(pipe, tmp_path / "wrong.json")


def test_a_reward_that_says_the_same_of_everything_is_refused(wan: Any) -> None:
    from nrg_sampler.rewards import PixelReward

    def constant(frames: torch.Tensor) -> torch.Tensor:
        return 0 * frames.mean(dim=(1, 2, 3, 4))[:, None] + 2

    def still(frames: torch.Tensor) -> torch.Tensor:
        return frames.detach().mean(dim=(1, 2, 3, 4))[:, None] + 0 * frames.sum()

    for judge, message in (
        (constant, "scores of light that differ between 2"),
        (still, "pushes by 0 of the velocity"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(wan, PixelReward(judge, wan.vae, ("light",)), "mine", "wan", ["a red circle"], 2, **CALL)


def test_the_bundled_model_and_its_judges_need_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--n", "2", "--probes", "1", "--steps", "5"]
    for name in ("shapes", "pixel"):
        assert cli.main(["calibrate", name, *few]) == 0
        assert f"{name}.json: guide with `--reward {name}.json`" in capsys.readouterr().out
        assert Calibration.read(Path(f"{name}.json")).axes == ("VQ", "MQ", "TA")
    pipe = NRGFlowPipeline.from_pretrained("shapes", reward_model=None)
    found = Calibration.read(Path("shapes.json"))
    reward = reward_for(pipe, "shapes.json")
    assert reward.mean == pytest.approx(found.mean) and reward.recommended_scale == found.recommended_scale
