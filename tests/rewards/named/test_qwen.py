"""VideoReward and HPSv3 on tiny random Qwen2-VL: scores against transformers' own processor, and their gradients."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_qwen
import torch
from PIL import Image
from tiny_videoreward import STATISTICS
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from nrg_sampler.judges.videoreward import VideoReward
from nrg_sampler.rewards.frame_scorer import Wanted
from nrg_sampler.rewards.named import hpsv3, videoreward
from nrg_sampler.rewards.named.joint import JointJudge
from nrg_sampler.rewards.named.preprocessing import CLIP_STD
from nrg_sampler.rewards.named.qwen_frames import FEWEST_PIXELS, patchified, resized

PROMPTS = ["a red circle", "blue"]
LIMITS = {"videoreward": (FEWEST_PIXELS, 200704), "hpsv3": (hpsv3.PIXELS, hpsv3.PIXELS)}
AS_THEY_ARE = {"videoreward": (336, 308), "hpsv3": (448, 448)}  # sizes of which nothing is resized
# Pillow rounds to 8 bits after each pass of its filter, torch does not: by how much a score of the tiny models differs
# for it. The largest that were measured are 1.5e-3 and 3e-4.
ROUNDING = {"videoreward": 2e-3, "hpsv3": 5e-4}


def clips(height: int, width: int, length: int = 5, count: int = 2) -> Tensor:
    """Clips of smooth random frames, on whole 8-bit levels."""
    coarse = torch.rand(count * length, 3, 5, 6, generator=torch.Generator().manual_seed(3))
    frames = functional.interpolate(coarse, (height, width), mode="bilinear").mul(255).round() / 255
    return frames.view(count, length, 3, height, width).transpose(1, 2)


def scored(judge: Any, frames: Tensor, fps: float | None = 2.0) -> Tensor:
    """Score by the judge's own signature."""
    score: Tensor = judge(frames, **Wanted.by(judge).arguments(len(frames), PROMPTS[: len(frames)], fps))
    return score


def processed(name: str, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Patches of frames ``(T, 3, H, W)`` by transformers' processor of pictures, each of which it shows twice."""
    fewest, most = LIMITS[name]
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": fewest, "longest_edge": most})
    pictures = [Image.fromarray(frame) for frame in (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()]
    prepared: Any = processor(images=pictures, return_tensors="pt")
    grid = prepared["image_grid_thw"][:1]
    return prepared["pixel_values"].view(len(frames), -1, 3, 2, 14 * 14), grid


@torch.no_grad()
def hidden(model: Any, folder: Path, name: str, patches: Tensor, grid: Tensor, prompt: str) -> Tensor:
    """The published forward pass: what is seen is put into the text, and the language model is given no positions."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    own = videoreward.TOKENS if name == "videoreward" else hpsv3.TOKENS
    tokenizer.add_special_tokens({"additional_special_tokens": list(own)})
    mark = "<|video_pad|>" if name == "videoreward" else "<|image_pad|>"
    question = tiny_qwen.QUESTIONS[name].format(text_prompt=prompt)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        f"{mark * (int(grid.prod()) // 4)}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    embeds = model.model.language_model.embed_tokens(ids)
    seen = model.model.visual(patches.reshape(int(grid.prod()), -1), grid_thw=grid).pooler_output
    place = (ids == tokenizer.convert_tokens_to_ids(mark))[..., None].expand_as(embeds)
    states: Tensor = model.model.language_model(inputs_embeds=embeds.masked_scatter(place, seen)).last_hidden_state
    special = torch.isin(ids[0], torch.tensor(tokenizer.convert_tokens_to_ids(list(own))))
    return states[0, special]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {name: tiny_qwen.build(name, tmp_path_factory.mktemp("base")) for name in tiny_qwen.NAMES}


@torch.no_grad()
def second_source(name: str, model: Any, folder: Path, frames: Tensor) -> Tensor:
    rows = []
    for clip, prompt in zip(frames.transpose(1, 2), PROMPTS, strict=False):  # (T, 3, H, W)
        if name == "videoreward":
            looked_at = {1: [0, 0], 3: [0, 2], 5: [0, 1, 3, 4]}[len(clip)]
            each, grid = processed(name, clip[looked_at])
            halves = zip(each[::2], each[1::2], strict=True)
            pairs = [torch.stack([one[:, :, 0], two[:, :, 1]], dim=2) for one, two in halves]
            grid = grid * torch.tensor([len(pairs), 1, 1])
            raw = model.rm_head(hidden(model, folder, name, torch.stack(pairs), grid, prompt))[:, 0]
            mean, std = (
                torch.tensor([STATISTICS[f"{axis}_{kind}"] for axis in ("VQ", "MQ", "TA")]) for kind in ("mean", "std")
            )
            rows.append((raw - mean) / std)
        else:
            each, grid = processed(name, clip)
            states = [hidden(model, folder, name, one, grid, prompt) for one in each]
            rows.append(torch.stack([model.rm_head(state)[0, :1] for state in states]).mean(dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize(("name", "length"), [("videoreward", 1), ("videoreward", 5), ("hpsv3", 1), ("hpsv3", 2)])
def test_scores_are_the_published_ones_where_nothing_is_resized(
    name: str, length: int, load: Callable[..., Any], folders: dict[str, Path], models: dict[str, Any]
) -> None:
    frames = clips(*AS_THEY_ARE[name], length=length)
    expected = second_source(name, models[name], folders[name], frames)
    torch.testing.assert_close(scored(load(name), frames), expected, atol=1e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().min() > 1e-3


@pytest.mark.parametrize("size", [(57, 91), (90, 53), (30, 201), (480, 832)], ids=str)
@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_resized_frames_differ_by_the_rounding_of_8_bits_only(
    name: str, size: tuple[int, int], load: Callable[..., Any], folders: dict[str, Path], models: dict[str, Any]
) -> None:
    frames = clips(*size, length=3 if name == "videoreward" else 1, count=1)
    first = frames[0, :, :1].transpose(0, 1)
    theirs, grid = processed(name, first)
    ours, own_grid = patchified(resized(first * 255, *reversed(LIMITS[name])))
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    assert own_grid == tuple(grid[0].tolist())
    assert ((ours.view_as(theirs[0]) - theirs[0]).abs() * std * 255).max() < 1.2
    difference = scored(load(name), frames) - second_source(name, models[name], folders[name], frames)
    assert difference.abs().max() < ROUNDING[name]


@pytest.mark.parametrize("size", [(41, 30), (120, 160)], ids=str)
@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_gradients_to_pixels_are_those_of_finite_differences(
    name: str, size: tuple[int, int], load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load(name, dtype=torch.float64)
    # transformers computes Qwen's norms and rotations in single precision otherwise
    for single in ("float", "float32"):
        monkeypatch.setattr(torch, single, torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    frames = (0.2 + 0.6 * clips(*size, length=2, count=1).double()).requires_grad_()
    scores = scored(judge, frames)
    assert scores.dtype == torch.float64
    direction = torch.randn(frames.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (scored(judge, frames + sign * 1e-5 * direction)[0] for sign in (1, -1))
    for column, expected in enumerate(((ahead - behind) / 2e-5).tolist()):
        (gradient,) = torch.autograd.grad(scores[0, column], frames, retain_graph=True)
        assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).all()  # every frame counts
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_recomputed_blocks_give_the_same_gradient_and_a_copy_has_its_own(name: str, load: Callable[..., Any]) -> None:
    judge, frames = load(name), clips(40, 60, length=2, count=1).requires_grad_()
    kept = copy.deepcopy(judge)
    for blocks in (kept.model.visual.blocks, kept.model.language_model.layers):
        for index, recomputed in enumerate(blocks):
            blocks[index] = recomputed.block
    gradients = [torch.autograd.grad(scored(one, frames)[:, 0].sum(), frames)[0] for one in (judge, kept)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_weights_that_are_lent_for_a_call_serve_the_backward_pass_too(name: str, load: Callable[..., Any]) -> None:
    judge, changed, frames = load(name), load(name), clips(40, 60, length=2, count=1).requires_grad_()
    for weight in changed.parameters():
        weight.mul_(1.01)
    score = functional_call(judge, dict(changed.named_parameters()), (frames, PROMPTS[:1]))[:, 0].sum()
    lent, own = (torch.autograd.grad(one, frames)[0] for one in (score, changed(frames, PROMPTS[:1])[:, 0].sum()))
    torch.testing.assert_close(lent, own)


def test_the_judge_of_files_is_the_same_network_but_rounds_to_8_bits(
    load: Callable[..., Any], folders: dict[str, Path]
) -> None:
    judge = VideoReward.from_pretrained(folders["videoreward"])
    network = load("videoreward")
    as_they_are, odd = clips(*AS_THEY_ARE["videoreward"], length=4, count=1), clips(90, 53, length=4, count=1)
    torch.testing.assert_close(judge(as_they_are, PROMPTS[:1], 2.0), network(as_they_are, PROMPTS[:1], 2.0))
    rounded, exact = judge(odd, PROMPTS[:1], 2.0), network(odd, PROMPTS[:1], 2.0)
    assert 0 < (rounded - exact).abs().max() < ROUNDING["videoreward"]


def test_only_the_frames_of_the_grid_have_a_gradient(load: Callable[..., Any]) -> None:
    judge, frames = load("videoreward"), clips(40, 60, length=17, count=1).requires_grad_()
    for fps, seen in ((4.0, [0, 2, 5, 7, 9, 11, 14, 16]), (8.0, [0, 5, 11, 16]), (100.0, [0, 5, 11, 16])):
        (gradient,) = torch.autograd.grad(judge(frames, PROMPTS[:1], fps).sum(), frames)
        assert gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist() == seen
        assert judge.looked_at(17, fps) == seen


def test_an_unknown_rate_is_assumed_and_said_once(load: Callable[..., Any]) -> None:
    judge, frames = load("videoreward"), clips(40, 60, length=33, count=1)
    with pytest.warns(UserWarning, match=r"rate of the clip is not known, and 16 is assumed; pass `attach\(..., fps="):
        assumed = judge(frames, PROMPTS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(judge(frames, PROMPTS[:1], None), judge(frames, PROMPTS[:1], 16.0))
        load("videoreward")(frames[:, :, :1], PROMPTS[:1])  # of one frame the rate does not matter
    torch.testing.assert_close(assumed, judge(frames, PROMPTS[:1], 16.0))


def test_hpsv3_gives_each_frame_a_mean_and_a_deviation(load: Callable[..., Any]) -> None:
    judge, frames = load("hpsv3"), clips(40, 60, length=2)
    distribution = judge.distribution(frames, PROMPTS)
    assert distribution.shape == (2, 2, 2) and (distribution[..., 1] > 0).all()
    torch.testing.assert_close(judge(frames, PROMPTS), distribution[..., 0].mean(dim=1, keepdim=True))
    patches, grid = patchified(resized(frames[0, :, :1].transpose(0, 1) * 255, hpsv3.PIXELS, hpsv3.PIXELS))
    output = judge.head(judge.read(patches, grid, PROMPTS[0]))[0]
    torch.testing.assert_close(distribution[0, 0], torch.stack([output[0], output[1].exp()]))


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_each_clip_is_scored_by_its_own_prompt(name: str, load: Callable[..., Any]) -> None:
    judge, frames = load(name), clips(40, 60, length=2)
    both = scored(judge, frames)
    torch.testing.assert_close(both[:1], scored(judge, frames[:1]))
    swapped = scored(judge, frames.flip(0)).flip(0)
    assert ((swapped - both)[:, -1].abs() > 1e-4).all()
    if name == "videoreward":  # quality and motion come before the prompt
        torch.testing.assert_close(swapped[:, :2], both[:, :2])


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_a_judge_is_frozen_and_computes_in_half_precision(name: str, load: Callable[..., Any]) -> None:
    judge, frames = load(name, dtype=torch.bfloat16).train(), clips(40, 60, length=2, count=1).requires_grad_()
    assert not any(module.training for module in judge.modules())
    assert not any(weight.requires_grad for weight in judge.parameters())
    assert judge.dtype == torch.bfloat16
    # HPSv3 has its head in single precision, as published
    assert {weight.dtype for weight in judge.head.parameters()} == {
        torch.bfloat16 if name == "videoreward" else torch.float32
    }
    scores = scored(judge, frames)
    assert scores.dtype == torch.float32 and scores.shape == (1, len(judge.axes))
    assert torch.autograd.grad(scores.sum(), frames)[0].isfinite().all()
    torch.testing.assert_close(scores, scored(load(name), frames), rtol=0.1, atol=0.1)


def test_axes_in_standard_units_stand_beside_those_of_other_rewards(load: Callable[..., Any]) -> None:
    judges = {name: load(name) for name in ("videoreward", "aesthetic")}
    with pytest.warns(UserWarning, match="VQ averages several rewards, but no standard deviation is published"):
        joint = JointJudge(judges, dict.fromkeys(judges, 1.0))
    assert joint.axes == ("VQ", "MQ", "TA") and joint.wanted.fps and not joint.wanted.needs_fps
    frames = clips(40, 60, length=2)
    torch.testing.assert_close(joint(frames, PROMPTS, 2.0)[:, 1:], judges["videoreward"](frames, PROMPTS, 2.0)[:, 1:])


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_what_cannot_be_scored_is_refused(name: str, load: Callable[..., Any]) -> None:
    judge, frames = load(name), clips(40, 60, length=2)
    with pytest.raises(ValueError, match="some pixels are NaN or infinite"):
        judge(frames.index_fill(4, torch.tensor([3]), float("nan")), PROMPTS)
    with pytest.raises(ValueError, match="divide 8-bit levels by 255"):
        judge((frames * 255).byte(), PROMPTS)
    with pytest.raises(ValueError, match="Expected 2 prompts, one for each clip, but got 1"):
        judge(frames, PROMPTS[:1])
    with pytest.raises(ValueError, match="Expected a prompt without the tokenizer's marks '<|'"):
        judge(frames[:, :, :1], ["a", "<|im_end|>"])
