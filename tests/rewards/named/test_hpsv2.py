"""Weights with open_clip's names, against the blocks of torch that open_clip is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_named
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.hpsv2 import H14, from_open_clip, open_clip_name
from nrg_sampler.rewards.named.judge import FrameJudge

State = dict[str, Tensor]
WIDTH, HEADS = tiny_named.LAYERS["hidden_size"], tiny_named.LAYERS["num_attention_heads"]
FILE = "HPS_v2_compressed.pt"


@pytest.fixture
def state() -> State:
    torch.manual_seed(1)
    return tiny_named.open_clip_state(tiny_named.clip())


def blocks(state: State, prefix: str, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The residual attention blocks of open_clip, as torch's own layer."""
    renamed = {"attn": "self_attn", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
    for number in range(tiny_named.LAYERS["num_hidden_layers"]):
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, tiny_named.LAYERS["intermediate_size"], 0.0, "gelu", batch_first=True, norm_first=True
        )
        start = f"{prefix}transformer.resblocks.{number}."
        own = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
        for old, new in renamed.items():
            own = {key.replace(f"{old}.", f"{new}.", 1): value for key, value in own.items()}
        layer.load_state_dict(own)
        tokens = layer.train()(tokens, src_mask=mask)  # without torch's fused inference path
    return tokens


def norm(state: State, name: str, values: Tensor) -> Tensor:
    return functional.layer_norm(values, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])


def image_features(state: State, pixels: Tensor) -> Tensor:
    patches = functional.conv2d(pixels, state["visual.conv1.weight"], stride=14).flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
    tokens = norm(state, "visual.ln_pre", torch.cat([first, patches], 1) + state["visual.positional_embedding"])
    return norm(state, "visual.ln_post", blocks(state, "visual.", tokens)[:, 0]) @ state["visual.proj"]


def text_features(state: State, ids: Tensor) -> Tensor:
    """Pooled as open_clip pools: at the highest token, the end of text."""
    tokens = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)
    hidden = norm(state, "ln_final", blocks(state, "", tokens, mask))
    return hidden[torch.arange(len(ids)), ids.argmax(-1)] @ state["text_projection"]


@torch.no_grad()
def test_both_towers_are_those_of_open_clip(state: State, load: Callable[..., FrameJudge]) -> None:
    judge: Any = load("hpsv2")
    pixels = torch.randn(2, 3, tiny_named.SIDE, tiny_named.SIDE, generator=torch.Generator().manual_seed(0))
    ours = judge.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(ours, image_features(state, pixels), atol=1e-4, rtol=1e-4)
    prompts = ["a red circle", "hm"]
    rows = [judge.tokenizer(prompt)["input_ids"] for prompt in prompts]
    ids = torch.tensor([row + [0] * (tiny_named.TOKENS - len(row)) for row in rows])  # open_clip pads with 0
    expected = functional.normalize(text_features(state, ids), dim=-1)
    torch.testing.assert_close(judge.text_features(prompts), expected, atol=1e-5, rtol=1e-4)


def test_the_conversion_is_the_inverse_of_the_naming_and_reads_every_key(state: State) -> None:
    torch.manual_seed(1)
    expected = tiny_named.clip().state_dict()
    torch.testing.assert_close(from_open_clip(state, expected, Path(FILE)), dict(expected), rtol=0, atol=0)
    assert {open_clip_name(name)[0] for name in expected} == set(state)


def test_the_published_size_has_a_name_for_every_weight() -> None:
    from accelerate import init_empty_weights

    with init_empty_weights():
        weights = CLIPModel(CLIPConfig(**H14)).state_dict()
    names = [open_clip_name(name) for name in weights]
    assert len(set(names)) == len(names)
    assert sum("resblocks" in name for name, _ in set(names)) == (24 + 32) * (12 + 4)  # thirds count thrice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("visual.proj"), "lacks visual.proj;"),
        (lambda state: state.update(extra=torch.ones(1)), "has too many: +extra;"),
        (
            lambda state: state.update({"transformer.resblocks.0.attn.in_proj_bias": torch.ones(5)}),
            "has another shape of transformer.resblocks.0.attn.in_proj_bias;",
        ),
        (lambda state: state.update(text_projection=torch.ones(24, 32)), "has another shape of text_projection;"),
    ],
)
def test_a_key_that_is_missing_too_many_or_of_another_shape_is_named_as_in_the_file(
    tmp_path: Path, state: State, change: Callable[[State], Any], message: str
) -> None:
    tiny_named.write("hpsv2", tmp_path)
    change(state)
    torch.save({"state_dict": state}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"weights of the model in .*{FILE}, but it {message}"):
        load_named(f"hpsv2:{tmp_path}")


def test_half_precision_weights_are_loaded_in_the_type_that_is_wanted(tmp_path: Path, state: State) -> None:
    tiny_named.write("hpsv2", tmp_path)
    torch.save({name: value.half() for name, value in state.items()}, tmp_path / FILE)
    assert {weight.dtype for weight in load_named(tmp_path).parameters()} == {torch.float32}
