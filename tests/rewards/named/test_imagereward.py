"""The keys of ImageReward, its tokenizer and the length of its prompts; its scores are tested with the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from accelerate import init_empty_weights
from transformers import BertTokenizer, BlipConfig

from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.imagereward import TEXT, VISION, new_model, published_name
from nrg_sampler.rewards.named.judge import FrameJudge

FRAMES = torch.rand(1, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
UNUSED = 4  # weights and biases of the two projections of BLIP's own training


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["imagereward"], tmp_path / "copy"))


def test_every_key_of_the_published_size_has_one_place() -> None:
    config = BlipConfig(vision_config=VISION, text_config=TEXT)
    with init_empty_weights():
        model = new_model(config.vision_config, config.text_config)
    keys = [published_name(name) for name in model.state_dict()]
    # 2 + 2 + 2 of the vision tower around 24 blocks of 12; 4 of the embeddings, 12 layers of 26; 5 layers of the head.
    assert len(set(keys)) == len(keys) == 6 + 24 * 12 + 4 + 12 * 26 + 10
    shapes = {published_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["blip.visual_encoder.pos_embed"] == (1, 197, 1024)
    assert shapes["blip.visual_encoder.blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["blip.text_encoder.embeddings.word_embeddings.weight"] == (30524, 768)
    assert shapes["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert shapes["mlp.layers.0.weight"] == (1024, 768)


def test_what_blip_was_trained_with_may_be_in_the_file_or_not(
    copied: Path, load: Callable[..., FrameJudge], folders: dict[str, Path]
) -> None:
    state = torch.load(copied / "ImageReward.pt")
    left = {key: value for key, value in state.items() if "_proj." not in key and "position_ids" not in key}
    assert len(state) - len(left) == UNUSED + 1
    torch.save(left, copied / "ImageReward.pt")
    copy, published = load_named(f"imagereward:{copied}"), load("imagereward")
    torch.testing.assert_close(copy(FRAMES, ["a"]), published(FRAMES, ["a"]))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("blip.visual_encoder.blocks.1.attn.qkv.bias", "lacks", "lacks blip.visual_encoder.blocks.1.attn.qkv.bias"),
        ("mlp.layers.7.weight", "lacks", "lacks mlp.layers.7.weight"),
        ("blip.text_encoder.pooler.dense.weight", "has", r"has too many: +blip.text_encoder.pooler.dense.weight"),
        ("blip.visual_encoder.pos_embed", "has", "another shape of blip.visual_encoder.pos_embed"),
    ],
)
def test_missing_and_surplus_keys_are_named_as_in_the_file(key: str, change: str, message: str, copied: Path) -> None:
    state = torch.load(copied / "ImageReward.pt")
    if change == "lacks":
        del state[key]
    else:
        state[key] = torch.ones(1, 2, 32)
    torch.save(state, copied / "ImageReward.pt")
    with pytest.raises(ValueError, match=message):
        load_named(f"imagereward:{copied}")


def test_without_a_config_the_file_has_to_be_of_the_published_size(copied: Path) -> None:
    (copied / "config.json").unlink()
    with pytest.raises(ValueError, match=r"Expected the 620 weights of the model in .*, but it lacks blip\."):
        load_named(f"imagereward:{copied}")


def test_a_vocabulary_alone_is_a_tokenizer(copied: Path, load: Callable[..., FrameJudge]) -> None:
    for file in copied.glob("token*"):
        file.unlink()
    (copied / "vocab.txt").write_text("\n".join(tiny_named.BERT_VOCABULARY), encoding="utf-8")
    prompt = ["a red circle"]
    copy, published = load_named(f"imagereward:{copied}"), load("imagereward")
    torch.testing.assert_close(copy(FRAMES, prompt), published(FRAMES, prompt))


def test_a_prompt_that_is_too_long_is_cut_as_its_own_code_does_and_warned_of_once(
    load: Callable[..., FrameJudge], folders: dict[str, Path], recwarn: pytest.WarningsRecorder
) -> None:
    judge: Any = load("imagereward")
    long = ["a prompt of so many letters that it is cut off at some place", "short"]
    with pytest.warns(UserWarning, match="imagereward reads 35 tokens of a prompt, and one has 49; the rest is not"):
        ids, mask = judge.tokens(long)
    judge(FRAMES.expand(2, -1, -1, -1, -1), long)
    cut = BertTokenizer.from_pretrained(folders["imagereward"])(
        long, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    assert torch.equal(ids, cut["input_ids"]) and torch.equal(mask, cut["attention_mask"])
    assert not recwarn.list
