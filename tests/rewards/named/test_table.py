"""The table of named rewards: its figures, its command and its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    BlipConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2VLConfig,
    Qwen2VLModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from nrg_sampler.cli import main
from nrg_sampler.cli.rewards import markdown
from nrg_sampler.rewards.named import hpsv3
from nrg_sampler.rewards.named.aesthetic import ClipHead, SiglipHead
from nrg_sampler.rewards.named.hpsv2 import H14
from nrg_sampler.rewards.named.imagereward import TEXT, VISION, new_model
from nrg_sampler.rewards.named.latent_table import LATENT_NAMES, LATENT_TABLE, canonical
from nrg_sampler.rewards.named.table import NAMES, NOT_OFFERED, TABLE

PAGE = Path(__file__).parents[3] / "docs" / "rewards" / "named.md"
BEGIN, END = "<!-- rewards: begin -->\n", "<!-- rewards: end -->"

L14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
L14_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14, "image_size": 384,
}  # fmt: skip

QWEN_TEXT = {
    "videoreward": {
        "vocab_size": 151_660, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "hpsv3": {
        "vocab_size": 151_658, "hidden_size": 3584, "intermediate_size": 18_944, "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
}  # fmt: skip


def qwen(name: str) -> list[nn.Module]:
    text = {**QWEN_TEXT[name], "num_hidden_layers": 28}
    width = text["hidden_size"]
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": width, "num_heads": 16, "mlp_ratio": 4}
    head = hpsv3.new_head(width) if name == "hpsv3" else nn.Linear(width, 1, bias=False)
    return [Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision)), head]


def published(name: str) -> list[nn.Module]:
    """What is loaded of a reward, in the published size."""
    if name == "aesthetic":
        return [CLIPVisionModelWithProjection(CLIPVisionConfig(**L14)), ClipHead(768)]
    if name == "aesthetic-v2.5":
        return [SiglipVisionModel(SiglipVisionConfig(**SO400M)), SiglipHead(1152)]
    if name == "imagereward":
        config = BlipConfig(vision_config=VISION, text_config=TEXT)
        return [new_model(config.vision_config, config.text_config)]
    large = {"projection_dim": 768, "text_config": L14_TEXT, "vision_config": L14}
    if name in QWEN_TEXT:
        return qwen(name)
    return [CLIPModel(CLIPConfig(**(large if name == "clipscore" else H14)))]


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_the_number_of_weights_is_that_of_the_published_sizes(entry) -> None:
    with init_empty_weights():
        parts = published(entry.name)
    assert sum(weight.numel() for part in parts for weight in part.parameters()) == entry.parameters
    in_file, size = entry.parameters, 4
    if entry.name == "hpsv3":  # its file is in bfloat16, and has the text head
        in_file, size = entry.parameters + 3584 * 151_658, 2
    assert entry.download is None or entry.download == pytest.approx(size * in_file, rel=0.01)


def test_no_name_means_two_things() -> None:
    assert len(NAMES) == sum(1 + len(entry.aliases) for entry in TABLE)
    assert not set(NAMES) & {canonical(name) for name in NOT_OFFERED}
    assert not set(LATENT_NAMES) & {*NAMES, *map(canonical, NOT_OFFERED)}


def test_statistics_are_one_per_axis_and_nothing_claims_weights_that_were_not_at_hand() -> None:
    for entry in TABLE:
        assert all(len(values) == len(entry.axes) for values in (entry.mean, entry.std) if values is not None)
        assert entry.gradient and not entry.weights_at_hand


def test_the_command_lists_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in table["offered"]] == [entry.name for entry in TABLE]
    assert {row["name"]: row["reason"] for row in table["not_offered"]} == NOT_OFFERED
    assert [row["name"] for row in table["latent"]] == [entry.name for entry in LATENT_TABLE]
    assert main(["rewards"]) == 0
    plain = capsys.readouterr().out
    assert plain.startswith("name") and "aesthetic-v2.5" in plain and "dover: its network is of" in plain
    assert "latent-prm: MQ of noisy latents, for HunyuanVideo" in plain
    assert main(["rewards", "--markdown"]) == 0
    assert capsys.readouterr().out.strip() == markdown()


def test_the_page_has_the_tables_of_the_command() -> None:
    assert PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip() == markdown()
