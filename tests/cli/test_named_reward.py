"""Published rewards by name on the command line, on tiny random weights in their layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_named

from nrg_sampler import cli
from nrg_sampler.files import fingerprint
from nrg_sampler.judges.loading import judge_identity, load_judge
from nrg_sampler.runs.manifest import Manifest

SIZE = ["--height", "16", "--width", "16", "--frames", "3", "--steps", "2"]


@pytest.fixture(scope="module")
def folders(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    root = tmp_path_factory.mktemp("models")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(root / "wan")
    (root / "wan" / "sampling.json").write_text('{"max_sequence_length": 8, "fps": 5}')
    places = {"wan": root / "wan"}
    for name in ("pickscore", "aesthetic"):
        (root / name).mkdir()
        places[name] = tiny_named.write(name, root / name)
    return places


@pytest.fixture
def model(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["--model", str(folders["wan"])]


def test_a_name_guides_is_in_the_manifest_and_replayed(
    model: list[str], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = f"pickscore:{folders['pickscore']}"
    assert cli.main(["generate", "a red circle", *model, *SIZE, "--reward", reward, "--out", "a.mp4"]) == 0
    manifest = Manifest.read(Path("a.json"))
    assert manifest.recipe.reward == reward
    assert manifest.fingerprints["reward"] == fingerprint(folders["pickscore"])
    (clip,) = manifest.clips
    assert clip.scores["reward"].keys() == {"preference"} and clip.trace
    capsys.readouterr()
    assert cli.main(["generate", "--replay", "a.json"]) == 0
    assert "identical" in capsys.readouterr().out


def test_several_names_are_compared(model: list[str], folders: dict[str, Path]) -> None:
    reward = f"aesthetic:{folders['aesthetic']}=1,pickscore:{folders['pickscore']}=2"
    chosen = ["--reward", reward, "--set", "weights=VQ=1,preference=2"]
    assert cli.main(["compare", "a red circle", *model, *SIZE, *chosen, "--out", "b.mp4"]) == 0
    manifest = Manifest.read(Path("b.json"))
    assert manifest.fingerprints.keys() == {"model", "reward aesthetic", "reward pickscore"}
    assert [set(clip.scores["reward"]) for clip in manifest.clips] == [{"VQ", "preference"}] * 2


def test_a_misspelt_name_is_refused_before_the_pipeline_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", "a red circle", "--model", "no/such", "--reward", "pickscor"]) != 0
    assert "did you mean 'pickscore'?" in capsys.readouterr().err


def test_a_name_judges_a_finished_video(
    model: list[str], folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    judge = f"pickscore:{folders['pickscore']}"
    assert (
        cli.main(["generate", "a red circle", *model, *SIZE, "--scale", "0", "--judge", judge, "--out", "c.mp4"]) == 0
    )
    assert Manifest.read(Path("c.json")).clips[0].scores["pickscore"].keys() == {"preference"}
    capsys.readouterr()
    assert cli.main(["score", "c.mp4", "--judge", judge, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["pickscore"].keys() == {"preference"}
    assert judge_identity(judge) == f"pickscore {fingerprint(folders['pickscore'])}"
    with pytest.raises(ValueError, match="Expected a judge from oracle, .*, pickscore, .*, but got 'nobody'"):
        load_judge("nobody")
