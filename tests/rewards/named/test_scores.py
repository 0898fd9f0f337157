"""Scores of every named reward against transformers' own processors and towers, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_named
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    BertTokenizer,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    SiglipImageProcessorPil,
    SiglipModel,
)

from nrg_sampler.rewards.named.judge import FrameJudge

PROMPTS = ["a red circle", "two blue stars"]
SIDE = tiny_named.SIDE
TEXT_AWARE = ("pickscore", "hpsv2", "hpsv2.1", "clipscore", "imagereward")
# Pillow rounds to 8 bits after each pass of its filter, torch does not: by how much a cosine and a rating of the tiny
# models differ for it, and ImageReward's score. The largest that were measured are 8e-4, 3e-3 and 3.1e-3.
COSINE, RATING, IMAGE_REWARD = 1e-3, 4e-3, 4e-3


def clips(height: int = SIDE, width: int = SIDE, length: int = 2) -> Tensor:
    """Two clips of smooth random frames, on whole 8-bit levels."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2 * length, 3, 5, 6, generator=generator)
    frames = functional.interpolate(coarse, (height, width), mode="bilinear").mul(255).round() / 255
    return frames.view(2, length, 3, height, width).transpose(1, 2)


def pictures(frames: Tensor) -> list[Image.Image]:
    levels = (frames.transpose(1, 2).flatten(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in levels.permute(0, 2, 3, 1).numpy()]


def padded(picture: Image.Image) -> Image.Image:
    """The longest side to size, and black bars, as HPSv2 does it."""
    scale = SIDE / max(picture.size)
    resized = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SIDE, SIDE))
    square.paste(resized, ((SIDE - resized.width) // 2, (SIDE - resized.height) // 2))
    return square


def pixels(name: str, frames: Tensor) -> Tensor:
    if name == "aesthetic-v2.5":
        processor: Any = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    else:
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=3
        )
    shown = [padded(picture) for picture in pictures(frames)] if name.startswith("hpsv2") else pictures(frames)
    prepared: Tensor = processor(images=shown, return_tensors="pt")["pixel_values"]
    return prepared


def head(layers: dict[str, Tensor], features: Tensor) -> Tensor:
    """Linear layers by the numbers of their keys."""
    for number in sorted({key.rsplit(".", 1)[0] for key in layers}):
        features = features @ layers[f"{number}.weight"].T + layers[f"{number}.bias"]
    return features


@torch.no_grad()
def second_source(name: str, folder: Path, frames: Tensor) -> Tensor:
    """The published score by transformers' own processor and features, the mean over frames, shape (B, 1)."""
    prepared, length = pixels(name, frames), frames.shape[2]
    if name == "imagereward":
        state = torch.load(folder / "ImageReward.pt")
        padded_to = {"padding": "max_length", "truncation": True, "max_length": 35}  # as its own code does
        tokens = BertTokenizer.from_pretrained(folder)(PROMPTS, **padded_to, return_tensors="pt")
        rows = torch.arange(len(frames)).repeat_interleave(length)
        scores = image_reward(state, prepared, tokens["input_ids"][rows], tokens["attention_mask"][rows])
    elif name.startswith("aesthetic"):
        model: Any = (SiglipModel if name == "aesthetic-v2.5" else CLIPModel).from_pretrained(folder).eval()
        features = functional.normalize(model.get_image_features(prepared).pooler_output, dim=-1)
        scores = head(torch.load(next(folder.glob("*.pth"))), features)
    else:
        if name.startswith("hpsv2"):
            torch.manual_seed(1)  # as it was written
            model = tiny_named.clip("gelu")
        else:
            model = CLIPModel.from_pretrained(folder).eval()
        tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
        texts = functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        images = functional.normalize(model.get_image_features(prepared).pooler_output, dim=-1)
        factor = {"pickscore": model.logit_scale.exp(), "clipscore": 100.0}.get(name, 1.0)
        scores = factor * (images * texts.repeat_interleave(length, 0)).sum(-1, keepdim=True)
    return scores.view(len(frames), length, 1).mean(1)


def image_reward(state: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward by its published formulas over its published names, shape (N, 1)."""
    blocks, heads = range(tiny_named.LAYERS["num_hidden_layers"]), tiny_named.LAYERS["num_attention_heads"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
        outs = []
        for one, keys, values in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
            logits = one @ keys.mT / keys.shape[-1] ** 0.5
            outs.append((logits if hidden is None else logits.masked_fill(hidden, -10000.0)).softmax(-1) @ values)
        return torch.cat(outs, -1)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    patch = functional.conv2d(pixels, *(state[f"{eye}.patch_embed.proj.{kind}"] for kind in ("weight", "bias")), 14)
    x = torch.cat([state[f"{eye}.cls_token"].expand(len(pixels), -1, -1), patch.flatten(2).mT], 1)
    x = x + state[f"{eye}.pos_embed"]
    for block in blocks:
        here = f"{eye}.blocks.{block}"
        qkv = linear(f"{here}.attn.qkv", norm(f"{here}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(f"{here}.attn.proj", attention(*qkv))
        x = x + linear(f"{here}.mlp.fc2", functional.gelu(linear(f"{here}.mlp.fc1", norm(f"{here}.norm2", x, 1e-6))))
    seen = norm(f"{eye}.norm", x, 1e-6)
    words = state[f"{text}.embeddings.word_embeddings.weight"][ids]
    words = words + state[f"{text}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    words = norm(f"{text}.embeddings.LayerNorm", words, 1e-12)
    for block in blocks:
        layer = f"{text}.encoder.layer.{block}"
        for name, other, hidden in (("attention", None, mask[:, None] == 0), ("crossattention", seen, None)):
            source = words if other is None else other
            q = linear(f"{layer}.{name}.self.query", words)
            k, v = (linear(f"{layer}.{name}.self.{part}", source) for part in ("key", "value"))
            read = linear(f"{layer}.{name}.output.dense", attention(q, k, v, hidden))
            words = norm(f"{layer}.{name}.output.LayerNorm", words + read, 1e-12)
        wide = functional.gelu(linear(f"{layer}.intermediate.dense", words))
        words = norm(f"{layer}.output.LayerNorm", words + linear(f"{layer}.output.dense", wide), 1e-12)
    score = words[:, 0]
    for number in (0, 2, 4, 6, 7):
        score = linear(f"mlp.layers.{number}", score)
    return (score - 0.16717362830052426) / 1.0333394966054072


def scored(judge: FrameJudge, frames: Tensor) -> Tensor:
    score: Tensor = judge(frames, PROMPTS[: len(frames)]) if judge.entry.reads_prompts else judge(frames)
    return score


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_scores_are_the_published_ones_where_nothing_is_resized(
    name: str, length: int, load: Callable[..., FrameJudge], folders: dict[str, Path]
) -> None:
    frames = clips(length=length)
    expected = second_source(name, folders[name], frames)
    torch.testing.assert_close(scored(load(name), frames), expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs() > 1e-3


@pytest.mark.parametrize("size", [(57, 91), (90, 53), (28, 61), (19, 23)], ids=str)
@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_resized_frames_differ_by_the_rounding_of_8_bits_only(
    name: str, size: tuple[int, int], load: Callable[..., FrameJudge], folders: dict[str, Path]
) -> None:
    frames = clips(*size)
    judge = load(name)
    ours = judge.preprocessing(frames.transpose(1, 2).flatten(0, 1))
    theirs = pixels(name, frames)
    std = torch.tensor(judge.preprocessing.std).view(3, 1, 1)
    assert ((ours - theirs) * std).abs().max() < 1.1 / 255
    difference = (scored(judge, frames) - second_source(name, folders[name], frames)).abs().max()
    if name.startswith("aesthetic"):
        assert difference < RATING
    elif name == "imagereward":
        assert difference < IMAGE_REWARD
    else:
        assert difference < COSINE * float(judge.entry.factor or judge.model.logit_scale.exp())


@pytest.mark.parametrize("size", [(57, 91), (90, 53), (28, 61), (19, 23)], ids=str)
@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_resized_frames_are_those_of_pillow_where_it_does_not_round(
    name: str, size: tuple[int, int], load: Callable[..., FrameJudge]
) -> None:
    frames = clips(*size)
    preprocessing = load(name).preprocessing
    flat = frames.transpose(1, 2).flatten(0, 1)
    processor = SiglipImageProcessorPil() if name == "aesthetic-v2.5" else CLIPImageProcessorPil()
    prepared = processor(
        images=[unrounded(picture, name) for picture in flat],
        do_resize=False,
        do_rescale=False,
        **({} if name == "aesthetic-v2.5" else {"crop_size": {"height": SIDE, "width": SIDE}}),
        return_tensors="pt",
    )["pixel_values"]
    torch.testing.assert_close(preprocessing(flat), prepared, atol=1e-5, rtol=0)


def unrounded(picture: Tensor, name: str) -> np.ndarray[Any, Any]:
    """Resize each channel by Pillow's filter in floating point; the processor crops it."""
    height, width = picture.shape[-2:]
    scale = SIDE / (max if name.startswith("hpsv2") else min)(height, width)
    sides = [round(side * scale) if name.startswith("hpsv2") else int(side * scale + 1e-9) for side in (width, height)]
    if name == "aesthetic-v2.5":
        sides = [SIDE, SIDE]
    channels = [Image.fromarray(channel.numpy()).resize(sides, Image.Resampling.BICUBIC) for channel in picture]
    resized = np.stack([np.asarray(channel) for channel in channels]).clip(0, 1)
    if not name.startswith("hpsv2"):
        return resized
    square = np.zeros((3, SIDE, SIDE), dtype=np.float32)
    top, left = ((SIDE - side) // 2 for side in resized.shape[1:])
    square[:, top : top + resized.shape[1], left : left + resized.shape[2]] = resized
    return square


@pytest.mark.parametrize("size", [(41, 30), (SIDE, SIDE)], ids=str)
@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_gradients_to_pixels_are_those_of_finite_differences(
    name: str, size: tuple[int, int], load: Callable[..., FrameJudge]
) -> None:
    judge = load(name, dtype=torch.float64)
    frames = (0.2 + 0.6 * clips(*size)[:1].double()).requires_grad_()
    score = scored(judge, frames)
    assert score.dtype == torch.float64
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert (gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).all()  # every frame counts
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        direction = torch.randn(frames.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (scored(judge, frames + sign * 1e-5 * direction) for sign in (1, -1))
        expected = ((ahead - behind) / 2e-5).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", TEXT_AWARE)
def test_each_clip_is_scored_by_its_own_prompt(name: str, load: Callable[..., FrameJudge]) -> None:
    judge, frames = load(name), clips()
    both = judge(frames, PROMPTS)
    alone = torch.cat([judge(clip[None], [prompt]) for clip, prompt in zip(frames, PROMPTS, strict=True)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)
    assert (judge(frames, PROMPTS[::-1]) - both).abs().max() > 1e-4


@pytest.mark.parametrize("name", tiny_named.NAMES)
def test_a_judge_is_frozen_moves_and_stays_in_evaluation_mode(name: str, load: Callable[..., FrameJudge]) -> None:
    judge = load(name, dtype=torch.bfloat16).train()
    assert not judge.training and not any(module.training for module in judge.modules())
    assert not any(weight.requires_grad for weight in judge.parameters())
    assert judge.dtype == torch.bfloat16 and judge.device == torch.device("cpu")
    frames = clips().requires_grad_()
    score = scored(judge, frames)
    assert score.dtype == torch.float32 and score.shape == (2, len(judge.axes))
    (gradient,) = torch.autograd.grad(score.sum(), frames)
    assert gradient.isfinite().all()
    exact = scored(load(name), frames)
    torch.testing.assert_close(score, exact, rtol=0.1, atol=0.1 * float(judge.entry.factor or 1))
    torch.testing.assert_close(
        scored(judge.float(), frames), exact, rtol=0.1, atol=0.1 * float(judge.entry.factor or 1)
    )


def test_texts_made_in_inference_mode_serve_gradients_after(load: Callable[..., FrameJudge]) -> None:
    judge, frames = load("pickscore"), clips().requires_grad_()
    with torch.inference_mode():
        scored(judge, frames)
    assert torch.autograd.grad(scored(judge, frames).sum(), frames)[0].any()


@pytest.mark.parametrize("name", tiny_named.NAMES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frames: frames.index_fill(4, torch.tensor([3]), float("nan")), "some pixels are NaN or infinite"),
        (lambda frames: frames / 0, "some pixels are NaN or infinite"),
        (lambda frames: frames[:, :, 0], r"frames of shape \(B, 3, T, H, W\), but got \(2, 3, 28, 28\)"),
        (lambda frames: frames.transpose(1, 2), r"but got \(2, 2, 3, 28, 28\)"),
        (lambda frames: frames[:, :, :0], r"but got \(2, 3, 0, 28, 28\)"),
        (lambda frames: (255 * frames).to(torch.uint8), "divide 8-bit levels by 255"),
    ],
)
def test_what_are_no_frames_is_refused(
    name: str, spoil: Callable[[Tensor], Tensor], message: str, load: Callable[..., FrameJudge]
) -> None:
    with pytest.raises(ValueError, match=message):
        scored(load(name), spoil(clips()))


@pytest.mark.parametrize(("prompts", "got"), [(["one"], "but got 1;"), ("one", "but got one text;")])
def test_prompts_that_are_not_one_for_each_clip_are_refused(
    prompts: Any, got: str, load: Callable[..., FrameJudge]
) -> None:
    with pytest.raises(ValueError, match=f"Expected 2 prompts, one for each clip, {got}"):
        load("clipscore")(clips(), prompts)


def test_a_prompt_that_is_too_long_is_cut_as_transformers_cuts_it_and_said_once(
    load: Callable[..., FrameJudge], recwarn: pytest.WarningsRecorder
) -> None:
    judge: Any = load("pickscore")
    long = ["a very long prompt of many letters", "short"]
    with pytest.warns(UserWarning, match="pickscore reads 16 tokens of a prompt, and one has 30; the rest is not"):
        features = judge.text_features(long)
    judge.text_features(long)
    judge(clips(), long)
    tokens = judge.tokenizer(long, padding=True, truncation=True, max_length=16, return_tensors="pt")
    expected = functional.normalize(judge.model.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(features, expected)
    assert not recwarn.list
