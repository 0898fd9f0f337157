"""Rewards and judges of one's own guide by where they are, as ``module:FILE.py:NAME``, wherever a reward is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from tiny import schedulers
from tiny_text import built, run

from nrg_sampler import NRGFlowPipeline, RewardGuidedScheduler, RewardGuider, attach, cli
from nrg_sampler.files import fingerprint
from nrg_sampler.rewards.by_name import (
    local_fingerprints,
    names_and_weights,
    require_known,
    reward_for,
    reward_on,
    sees_frames,
)
from nrg_sampler.rewards.pixel import PixelReward
from nrg_sampler.runs.manifest import Manifest

PROMPT = "a red circle"
CODE = '''
import torch

class Length:
    """Red, by as much as the prompt is long."""
    axes = ("TA",)
    mean, std, recommended_scale = (0.5,), (2.0,), 3.0

    def __call__(self, frames, prompts):
        return frames[:, 0].mean(dim=(1, 2, 3))[:, None] * torch.tensor([[len(text)] for text in prompts])

class Light(torch.nn.Module):
    axes = ("light",)

    def forward(self, frames):
        return frames.mean(dim=(1, 2, 3, 4))[:, None]

class InTurn:
    axes = ("turn",)

    def __call__(self, clips, texts, rate):
        return clips.mean(dim=(1, 2, 3, 4))[:, None] * len(texts[0])

class Blind:
    axes = ("blind",)

    @torch.no_grad()
    def __call__(self, frames):
        return frames.mean(dim=(1, 2, 3, 4))[:, None]

class Latents:
    axes = ("positive",)

    def __call__(self, latents, sigma, conditioning):
        return ((1 - sigma) * latents.mean(dim=(1, 2, 3, 4)))[:, None]

axisless = lambda frames: frames
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(CODE)
    return f"module:{file}"


@pytest.mark.parametrize("name", ["Length", "Light", "InTurn", "Latents"])
def test_it_raises_what_it_rewards(own: str, name: str) -> None:
    pipe, settings = built("Wan")
    plain = run(pipe, settings, PROMPT)
    reward = reward_for(pipe, f"{own}:{name}")
    assert isinstance(reward, PixelReward) == (name != "Latents")
    with attach(pipe, f"{own}:{name}", scale=3000, max_push=None, every=1) as trace:
        guided = run(pipe, settings, PROMPT)
    assert trace.axes == tuple(reward.axes)
    scores = []
    for latents in (plain, guided):
        if name == "Latents":
            scores.append(latents.mean())
        else:
            scores.append(reward.score_frames(reward.frames(latents), [PROMPT], 8.0).item())
    assert scores[1] > scores[0]


def test_what_it_says_of_its_scores_is_taken(own: str) -> None:
    pipe, _ = built("Wan")
    reward = reward_for(pipe, f"{own}:Length")
    assert (reward.mean, reward.std, reward.recommended_scale) == ((0.5,), (2.0,), 3.0)
    assert reward.needs_prompts and not reward_for(pipe, f"{own}:Light").needs_prompts


def test_it_stands_beside_published_ones_in_a_dictionary_a_list_or_a_text(own: str, tmp_path: Path) -> None:
    pipe, _ = built("Wan")
    published = f"aesthetic:{tiny_named.write('aesthetic', tmp_path)}"
    light = f"{own}:Light"
    for wanted in ({published: 1, light: 2}, [published, light], (published, light), f"{published}=1,{light}=2"):
        reward = reward_for(pipe, wanted)
        assert reward.axes == ("VQ", "light")
        frames = torch.rand(2, 3, 2, 20, 20)
        torch.testing.assert_close(reward.score_frames(frames)[:, 1], frames.mean(dim=(1, 2, 3, 4)))
    assert names_and_weights(f"{published},{light}") == {published: 1.0, light: 1.0}
    file = Path(own.partition(":")[2])
    found = local_fingerprints(f"{published}=1,{light}=2")
    assert found == {"reward aesthetic": fingerprint(tmp_path), "reward Light": fingerprint(file)}
    with pytest.raises(ValueError, match="'module:.*:Latents' is a latent reward; load it"):
        reward_for(pipe, [light, f"{own}:Latents"])


def test_a_pipeline_is_saved_by_its_place(own: str, tmp_path: Path) -> None:
    pipe, _ = built("Wan")
    NRGFlowPipeline.from_pipe(pipe, f"{own}:Light").save_pretrained(tmp_path)
    assert NRGFlowPipeline.from_pretrained(tmp_path).reward_model.source == f"{own}:Light"


def test_a_scheduler_and_a_guider_take_names_with_the_vae(own: str) -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    pipe, settings = built("Wan")
    pipe.scheduler = schedulers()["unipc"]
    with attach(pipe, f"{own}:Length", scale=300, max_push=None):
        attached = run(pipe, settings, PROMPT)
    from nrg_sampler import RewardGuidance

    guidance = RewardGuidance(scale=300, max_push=None)
    plain = pipe.scheduler
    pipe.scheduler = RewardGuidedScheduler(plain, f"{own}:Length", guidance, prompts=PROMPT, vae=pipe.vae)
    torch.testing.assert_close(run(pipe, settings, PROMPT), attached, atol=1e-4, rtol=1e-4)
    guider = RewardGuider(ClassifierFreeGuidance(), plain, [f"{own}:Light", f"{own}:Length"], vae=pipe.vae)
    assert guider.trace.axes == ("light", "TA")
    for make in (lambda: RewardGuidedScheduler(plain, "pickscore"), lambda: RewardGuider(None, plain, "pickscore")):
        with pytest.raises(ValueError, match="the pipeline's VAE for pickscore, which see pixels, but got none; pass"):
            make()
    assert reward_on(None, f"{own}:Latents").axes == ("positive",)


def test_what_is_no_reward_is_refused_in_a_sentence(own: str) -> None:
    pipe, settings = built("Wan")
    with pytest.raises(ValueError, match="Expected a reward in '.*:axisless', a callable with named `axes`"):
        require_known(f"{own}:axisless")
    with pytest.raises(
        ValueError, match="Expected a reward of yours as module:PACKAGE.MODULE:NAME .* cannot be impor"
    ):
        require_known([f"{own}:Nothing"])
    assert sees_frames(f"{own}:Light") and not sees_frames(f"{own}:Latents")
    with pytest.raises(ValueError, match="gradient"), attach(pipe, f"{own}:Blind"):
        run(pipe, settings, PROMPT)


def test_the_command_line_guides_searches_and_replays_by_it(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe, _ = built("Wan")
    pipe.save_pretrained("wan")
    size = ["--height", "16", "--width", "16", "--frames", "5", "--steps", "8", "--model", "wan"]
    options = [PROMPT, *size, "--reward", f"{own}:Length"]
    for search in (["--best-of", "2"], ["--search", "--best-of", "2"]):
        assert cli.main(["generate", *options, *search, "--out", "a.mp4"]) == 0, capsys.readouterr().err
    assert cli.main(["generate", *options, "--steps", "4", "--search"]) == 2
    assert "Expected a first choice after the second step or later" in capsys.readouterr().err
    manifest = Manifest.read(Path("a.json"))
    assert manifest.fingerprints["reward"] == fingerprint(Path(own.partition(":")[2]))
    assert manifest.clips[0].scores["reward"].keys() == {"TA"}
    assert cli.main(["generate", "--replay", "a.json"]) == 0
    assert "identical" in capsys.readouterr().out


def test_a_teacher_may_be_a_published_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nrg_sampler.judges.loading import judge_identity, load_judge

    name = f"clipscore:{tiny_named.write('clipscore', tmp_path)}"
    teacher: Any = load_judge(name)
    assert teacher(torch.rand(2, 3, 3, 20, 20), ["a", "b"], 8.0).shape == (2, 1)
    assert judge_identity(name).startswith("clipscore ")
