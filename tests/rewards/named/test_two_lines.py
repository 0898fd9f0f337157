"""A named reward guides each kind of pipeline in two lines, on its own VAE."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import TINY
from tiny_text import built, run
from torch import Tensor

from nrg_sampler import NRGFlowPipeline, attach
from nrg_sampler.rewards import by_name
from nrg_sampler.rewards.by_name import reward_for
from nrg_sampler.rewards.decoding import decoded
from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.pixel import PixelReward

PROMPT = "a red circle"


def image_vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(**blocks, block_out_channels=(4,) * 4, latent_channels=4, norm_num_groups=2, shift_factor=0.1)
    return vae.eval()


def pipeline(name: str) -> tuple[Any, dict[str, Any]]:
    pipe, settings = built(name)
    if name == "Stable Diffusion 3":
        pipe.register_modules(vae=image_vae())
    return pipe, settings


def clean(pipe: Any, settings: dict[str, Any], latents: Tensor) -> Tensor:
    """Latents of a pipeline as ``(B, C, T, H, W)``."""
    kind = type(pipe).__name__
    if kind == "FluxPipeline":
        latents = pipe._unpack_latents(latents, settings["height"], settings["width"], 8)
    if kind == "LTXPipeline":
        return pipe._unpack_latents(latents, 2, 2, 3)
    return latents if latents.ndim == 5 else latents[:, :, None]


FAMILIES = ("Wan", "LTX", "FLUX.1", "Stable Diffusion 3")
# Of a free push, where 100 is beyond the best on these tiny pipelines or hardly moves them.
SCALES = {
    ("videoreward", "LTX"): 1,
    ("videoreward", "FLUX.1"): 10,
    ("hpsv3", "Wan"): 1e5,
    ("hpsv3", "Stable Diffusion 3"): 1e4,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_are_those_of_the_pipeline(family: str) -> None:
    pipe, settings = pipeline(family)
    latents = clean(pipe, settings, run(pipe, settings, PROMPT))
    shown = torch.as_tensor(run(pipe, settings, PROMPT, output_type="pt"))
    frames = decoded(pipe.vae, latents).transpose(1, 2)  # (B, T, 3, H, W)
    torch.testing.assert_close(frames.view_as(shown), shown, rtol=0, atol=1e-4)


def test_frames_of_ltx_are_those_of_its_statistics_and_of_a_decoder_that_takes_the_noise_level() -> None:
    from diffusers import AutoencoderKLLTXVideo

    pipe, settings = pipeline("LTX")
    torch.manual_seed(0)
    widths = dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), (4,) * 4)
    layers = dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1,) * 5)
    vae = AutoencoderKLLTXVideo(latent_channels=4, **widths, **layers, timestep_conditioning=True).eval()
    vae.latents_mean, vae.latents_std = torch.randn(4), torch.rand(4) + 0.5
    pipe.register_modules(vae=vae)
    latents = clean(pipe, settings, run(pipe, settings, PROMPT))
    shown = run(pipe, settings, PROMPT, output_type="pt")
    torch.testing.assert_close(decoded(vae, latents).transpose(1, 2).view_as(shown), shown, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["pickscore", "aesthetic", "videoreward", "hpsv3"])
def test_a_name_raises_its_score_and_scale_0_changes_nothing(family: str, name: str, folders: dict[str, Path]) -> None:
    pipe, settings = pipeline(family)
    wanted = f"{name}:{folders[name]}"
    plain = run(pipe, settings, PROMPT)
    fps = 25 if family == "LTX" else 2  # its call states that
    with attach(pipe, wanted, scale=0, fps=2):
        assert torch.equal(run(pipe, settings, PROMPT), plain)
    frames = "all" if name == "hpsv3" else None  # as it is graded; else what is recommended
    scale = SCALES.get((name, family), 100)
    with attach(pipe, wanted, scale=scale, max_push=None, fps=2, frames=frames) as trace:
        guided = run(pipe, settings, PROMPT)
    assert trace.summary()["guided"] > 0
    reward = reward_for(pipe, wanted)

    @torch.no_grad()
    def score(latents: Tensor) -> float:
        frames = reward.frames(clean(pipe, settings, latents))
        return reward.score_frames(frames, [PROMPT], fps=fps).sum().item()

    assert score(guided) > score(plain)
    assert torch.equal(run(pipe, settings, PROMPT), plain)


def test_the_lines_of_the_docs_run_as_printed(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        by_name, "load_named", lambda name, **options: load_named(f"{name}:{folders[name]}", **options)
    )
    wan, settings = pipeline("Wan")
    settings |= {"output_type": "np", "return_dict": True}

    def pipe(prompt: str) -> Any:
        return wan(prompt, **settings, generator=torch.Generator().manual_seed(0))

    def attached(_: Any, *args: Any, **options: Any) -> Any:
        return attach(wan, *args, **options)

    page = (Path(__file__).parents[3] / "docs" / "rewards" / "named.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    for code, named in zip(blocks[:2], ('"pickscore"', '{"aesthetic": 1, "clipscore": 2}'), strict=True):
        assert named in code
        names: dict[str, Any] = {"attach": attached, "pipe": pipe, "prompt": PROMPT}
        exec(compile(code, "named.md", "exec"), names)
        assert (names["frames"] != pipe(PROMPT).frames[0]).any()


def test_names_side_by_side_are_axes(folders: dict[str, Path]) -> None:
    pipe, settings = pipeline("Wan")
    wanted = {f"{name}:{folders[name]}": weight for name, weight in (("aesthetic", 1), ("clipscore", 2))}
    with attach(pipe, wanted, weights="VQ=1,TA=2") as trace:
        run(pipe, settings, PROMPT)
    assert trace.axes == ("VQ", "TA") and trace.summary()["guided"] > 0
    reward = reward_for(pipe, wanted)
    singles = [reward_for(pipe, name) for name in wanted]
    frames = torch.rand(2, 3, 2, 20, 20)
    texts = ["a", "b"]
    expected = torch.cat([one.score_frames(frames, texts) for one in singles], dim=1)
    torch.testing.assert_close(reward.score_frames(frames, texts), expected)
    assert reward.needs_prompts and not singles[0].needs_prompts


def test_names_of_the_same_axis_are_averaged_in_standard_units(folders: dict[str, Path]) -> None:
    pipe, _ = pipeline("Wan")
    wanted = ",".join(f"{name}:{folders[name]}={weight}" for name, weight in (("pickscore", 1), ("hpsv2", 3)))
    with pytest.warns(UserWarning, match="preference averages several rewards, but no standard deviation is publ"):
        reward = reward_for(pipe, wanted)
    assert reward.axes == ("preference",)
    frames, texts = torch.rand(2, 3, 2, 20, 20), ["a", "b"]
    first, second = reward.judge.judges
    torch.testing.assert_close(
        reward.score_frames(frames, texts), (first(frames, texts) + 3 * second(frames, texts)) / 4
    )
    first.mean, first.std, second.mean, second.std = (20.0,), (2.0,), (0.3,), (0.1,)
    expected = ((first(frames, texts) - 20) / 2 + 3 * (second(frames, texts) - 0.3) / 0.1) / 4
    torch.testing.assert_close(reward.score_frames(frames, texts), expected)


def test_judges_of_no_text_together_need_none(folders: dict[str, Path]) -> None:
    pipe, _ = pipeline("Wan")
    names = ("aesthetic", "aesthetic-v2.5")
    with pytest.warns(UserWarning, match="VQ averages"):
        reward = reward_for(pipe, {f"{name}:{folders[name]}": 1 for name in names})
    assert not reward.needs_prompts and reward.axes == ("VQ",)
    assert reward.score_frames(torch.rand(1, 3, 1, 20, 20)).shape == (1, 1)


def test_a_name_becomes_the_reward_of_a_pipeline_that_is_loaded(folders: dict[str, Path]) -> None:
    pipe, settings = pipeline("Wan")
    wanted = f"pickscore:{folders['pickscore']}"
    guided = NRGFlowPipeline.from_pipe(pipe, wanted)
    with attach(pipe, wanted):
        attached = run(pipe, settings, PROMPT)
    assert torch.equal(run(guided, settings, PROMPT), attached)
    assert guided.reward_model.source == wanted and not hasattr(pipe, "reward_model")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("pickscor", "got 'pickscor'; did you mean 'pickscore'"),
        ("videoscore", "'videoscore' cannot: it is published with a package of its own"),
        ("oracle", "Expected a reward that can guide, but 'oracle' only judges, with --judge;"),
        ("pixel", "'pixel' only judges, with --judge; a pixel judge is made a reward by `PixelReward"),
        ({}, "at least one reward, but got none"),
        ({"pickscore": 0}, "a weight above 0 for the reward 'pickscore', a finite number, but got 0;"),
        ({"pickscore": float("nan")}, "but got nan"),
        ({"pickscore": -1}, "but got -1"),
        ({"pickscore": True}, "but got True"),
        ("pickscore=x", "but got 'x'"),
        ("pickscore=inf,aesthetic=1", "but got 'inf'"),
        ("pickscore=1,pickscore=2", "each reward once, but got 'pickscore' twice"),
        ({"pickscore": 1, "shapes": 1}, "published rewards by name, but 'shapes' is a latent reward"),
        ("pickscore", "Expected model.safetensors or pytorch_model.bin in .*, or pass its folder as pickscore:FOLDER"),
    ],
)
def test_what_is_no_reward_is_refused_in_a_sentence(wanted: Any, message: str) -> None:
    pipe, _ = pipeline("Wan")
    with pytest.raises(ValueError, match=message), attach(pipe, wanted):
        pass


def test_a_pipeline_without_a_vae_is_refused(folders: dict[str, Path]) -> None:
    pipe, _ = built("Stable Diffusion 3")
    with (
        pytest.raises(ValueError, match="Expected a pipeline with a VAE for pickscore:.*, which see"),
        attach(pipe, f"pickscore:{folders['pickscore']}"),
    ):
        pass


def test_a_pipeline_with_a_named_reward_is_saved_by_its_name(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe, settings = pipeline("Wan")
    pipe.save_pretrained(tmp_path / "plain")
    wanted = {f"{name}:{folders[name]}": weight for name, weight in (("aesthetic", 1), ("clipscore", 2.5))}
    guided = NRGFlowPipeline.from_pretrained(tmp_path / "plain", reward_model=wanted)
    assert isinstance(guided.reward_model, PixelReward)
    guided.save_pretrained(tmp_path / "guided")
    assert isinstance(guided.reward_model, PixelReward)
    again = NRGFlowPipeline.from_pretrained(tmp_path / "guided")
    assert again.reward_model.source == guided.reward_model.source
    for one in (guided, again):
        one.set_progress_bar_config(disable=True)
    samples = [run(one, settings, PROMPT) for one in (guided, again)]
    assert torch.equal(*samples) and not torch.equal(samples[0], run(guided, settings, PROMPT, reward_scale=0.0))
    bare = NRGFlowPipeline.from_pretrained(tmp_path / "guided", reward_model=None)
    assert bare.reward_model is None
    bare.save_pretrained(tmp_path / "bare")
    assert NRGFlowPipeline.from_pretrained(tmp_path / "bare").reward_model is None


def test_flux_2_whose_latents_are_normalised_in_patches_is_refused(folders: dict[str, Path]) -> None:
    from diffusers import AutoencoderKLFlux2

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKLFlux2(**blocks, block_out_channels=(4,) * 4, latent_channels=4, norm_num_groups=2)
    pipe = TINY["FLUX.2"]().pipe
    pipe.register_modules(vae=vae)
    with (
        pytest.raises(ValueError, match="but Flux2Pipeline normalises patches of them by a batch norm; pass a reward"),
        attach(pipe, f"aesthetic:{folders['aesthetic']}"),
    ):
        pass
