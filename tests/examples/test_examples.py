"""The examples run, here on a tiny folder in place of the bundled model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
BUNDLED = 'Path(nrg_sampler.__file__).parent / "shapes" / "weights"'
RUN = {"height": 64, "width": 64, "num_frames": 13, "num_inference_steps": 20, "max_sequence_length": 32}


@pytest.fixture(scope="module")
def weights(components: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the bundled one."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    from nrg_sampler import LatentReward

    folder = tmp_path_factory.mktemp("weights")
    WanPipeline(**components, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)).save_pretrained(
        folder / "pipeline"
    )
    torch.manual_seed(0)
    LatentReward.from_transformer(components["transformer"], num_blocks=1).save_pretrained(folder / "reward")
    return folder


def test_the_docs_say_what_the_scores_say(capsys: pytest.CaptureFixture[str]) -> None:
    source = (EXAMPLES / "read_scores.py").read_text(encoding="utf-8")
    exec(compile(source, "read_scores", "exec"), {"__file__": str(EXAMPLES / "read_scores.py")})
    printed = capsys.readouterr().out
    pages = (EXAMPLES.parent / "docs" / "evidence").glob("*.md")
    evidence = " ".join(" ".join(page.read_text(encoding="utf-8") for page in pages).split())
    figures = {
        "paper +0.168, default minus that -0.014 ± 0.023": "a paired difference of 0.014 ± 0.023",
        "letter +0.103, default minus that +0.051 ± 0.038": "a paired difference of 0.051 ± 0.038",
        "2nd +0.147, default minus that +0.007 ± 0.012": "0.007 ± 0.012 less",
        "auto +0.157, default minus that -0.003 ± 0.008": (
            "+0.157 against +0.154, a paired difference of 0.003 ± 0.008"
        ),
        "letter: noised minus clean +33.500 ± 6.031": "wins 33.5 ± 6.0 points more on motion",
        "paper: noised minus clean +26.250": "26 points at w = 30",
        "default: noised minus clean +15.250": "15 at the default",
        "to the best: +0.30": "gains half of it (+0.30)",
        "unguided means 0.663 / 0.481 / 0.844": "means are 0.663 / 0.481 / 0.844 (VQ / MQ / TA); by the oracle",
        "best: VQ +0.157 ± 0.049, MQ +0.137 ± 0.033, TA +0.122 ± 0.039": (
            "(+0.137 ± 0.033 and +0.122 ± 0.039; `python examples/read_scores.py`)"
        ),
        "balanced: VQ +0.143 ± 0.046, MQ +0.140 ± 0.033, TA +0.126 ± 0.042": (
            "(VQ +0.143 ± 0.046, MQ +0.140 ± 0.033, TA +0.126 ± 0.042)"
        ),
        "+0.07\n": "the best quarter least (+0.07)",
        "0.2: 4%, gain more: 30%": "4 % of the clips lose more than 0.2, 30 % gain more",
    }
    assert [line for line in figures if line not in printed] == []
    assert [line for line in figures.values() if line not in evidence] == []


def run_example(name: str, weights: Path, **constants: Any) -> dict[str, Any]:
    """Run an example on the tiny folder, with other values of its constants."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    tiny = source.replace(BUNDLED, f"Path({str(weights)!r})")
    folders = f"{str(weights / 'pipeline')!r}, reward_model={str(weights / 'reward')!r}"
    tiny = tiny.replace('from_pretrained("shapes")', f"from_pretrained({folders})")
    tiny = tiny.replace("generator=generator)", "generator=generator, height=16, width=16, num_frames=5)")
    for constant, value in constants.items():
        tiny, found = re.subn(rf"^{constant} = .*$", f"{constant} = {value!r}", tiny, flags=re.MULTILINE)
        assert found == 1
    assert tiny != source
    names: dict[str, Any] = {}
    exec(compile(tiny, name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_stock_pipeline_is_guided_by_two_added_lines(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example("guide_stock_wan", weights)
    assert Path("guided.mp4").is_file()
    assert len(names["trace"].rows()) == 20
    assert "sigma" in capsys.readouterr().out
    assert (EXAMPLES / "guide_stock_wan.py").read_text(encoding="utf-8").count("# added") == 2


def test_a_handwritten_loop_samples_what_the_attached_pipeline_samples(weights: Path) -> None:
    from nrg_sampler import RewardGuidance, attach

    names = run_example("handwritten_loop", weights)
    generator = torch.Generator().manual_seed(0)
    prompt = "a red circle moving right"
    with attach(names["pipe"], names["reward"], RewardGuidance.preset("best")):  # as without a memory of directions
        frames = names["pipe"](prompt, negative_prompt="", guidance_scale=4.0, generator=generator, **RUN).frames[0]
    np.testing.assert_allclose(names["frames"], frames, atol=1e-4)
    assert Path("guided.mp4").is_file()


def test_the_distance_between_clips_of_open_prompts_is_told(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["a red circle moving right", "a blue square moving left"]
    names = run_example("open_prompts", weights, PROMPTS=prompts, SEEDS=3)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == prompts
    for line in said:
        told = dict(part.rsplit(" ", 1) for part in line.split(": ")[1].split(", "))
        assert told.keys() == names["SETTINGS"].keys()
        assert told["unguided"] == "1.00"
    distances = names["distances"]  # of the last prompt; to the last digit, for the tiny reward pushes little
    assert distances["unguided"] != distances["guided"] != distances["lookahead=0.1"]
    assert min(distances.values()) > 0


def test_an_own_reward_raises_what_it_rewards(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_example("own_reward", weights)
    assert capsys.readouterr().out.count("mean brightness") == 2
    rewards = [row["reward"]["brightness"] for row in names["pipe"].trace.rows() if not row["skipped"]]
    assert rewards[-1] > rewards[0]
    assert rewards[-1] > 0.3
