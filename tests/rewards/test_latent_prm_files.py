"""Checkpoints of a latent PRM: which forms are read, and what is wrong with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_prm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nrg_sampler.rewards import Conditioning, LatentPRM
from nrg_sampler.rewards.by_name import reward_for
from nrg_sampler.rewards.named import load_named

GENERATOR = torch.Generator().manual_seed(0)
NOISY = (
    torch.randn(1, 4, 2, 4, 4, generator=GENERATOR),
    torch.tensor([0.3]),
    Conditioning(torch.randn(1, 3, 16, generator=GENERATOR), pooled=torch.randn(1, 8, generator=GENERATOR)),
)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return tiny_prm.state_of(tiny_prm.transformer(), tiny_prm.attention_head())


@torch.no_grad()
def score(folder: Path, **options: Any) -> Tensor:
    found: Tensor = LatentPRM.from_pretrained(folder, **options)(*NOISY)
    return found


@pytest.mark.parametrize("prefix", ["", "model.transformer.", "backbone."])
def test_the_names_of_a_trunk_may_begin_with_anything(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    renamed = {f"{prefix}{key.removeprefix('backbone.')}" if "backbone." in key else key: state[key] for key in state}
    expected = score(tiny_prm.write(tmp_path / "a", state))
    torch.testing.assert_close(score(tiny_prm.write(tmp_path / "b", renamed)), expected)


@pytest.mark.parametrize(("layers", "single"), [(1, 0), (3, 0), (2, 2), (0, 1)])
def test_the_number_of_blocks_is_that_of_the_file(layers: int, single: int, tmp_path: Path) -> None:
    folder = tiny_prm.write(
        tmp_path, tiny_prm.state_of(tiny_prm.transformer(layers, single), tiny_prm.attention_head())
    )
    reward = LatentPRM.from_pretrained(folder)
    assert reward.blocks == (layers, single)
    assert reward(*NOISY).isfinite().all()


def test_the_output_layer_of_a_whole_transformer_is_counted_and_not_used(tmp_path: Path) -> None:
    whole, head = tiny_prm.transformer(), tiny_prm.attention_head()
    state = {**whole.state_dict(), **head}
    reward = LatentPRM.from_pretrained(tiny_prm.write(tmp_path / "whole", state))
    assert reward.loaded_keys == (len(state) - 4, 4)
    torch.testing.assert_close(
        reward(*NOISY), score(tiny_prm.write(tmp_path / "cut", tiny_prm.state_of(whole, tiny_prm.attention_head())))
    )


def test_files_as_trainings_write_them(state: dict[str, Tensor], tmp_path: Path) -> None:
    expected = score(tiny_prm.write(tmp_path / "one", state))
    (tmp_path / "shards").mkdir()
    keys = sorted(state)
    for number, part in enumerate((keys[:20], keys[20:]), start=1):
        save_file({key: state[key] for key in part}, tmp_path / "shards" / f"model-{number:05}-of-00002.safetensors")
    (tmp_path / "torch").mkdir()
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    torch.save({"state_dict": wrapped, "step": 7}, tmp_path / "torch" / "pytorch_model.bin")
    torch.save({"state": 1}, tmp_path / "torch" / "optimizer.pt")
    for name in ("shards", "torch"):
        (tmp_path / name / "config.json").write_text(json.dumps(tiny_prm.SETTINGS), encoding="utf-8")
        torch.testing.assert_close(score(tmp_path / name), expected)  # memory lies otherwise, and sums differ


@pytest.mark.parametrize("queries", ["reward_head.query.weight", "pool.queries", "head.query_tokens"])
def test_queries_are_known_by_their_name(queries: str, tmp_path: Path) -> None:
    whole = tiny_prm.transformer()
    scores = [
        score(tiny_prm.write(tmp_path / str(number), tiny_prm.state_of(whole, tiny_prm.attention_head(name))))
        for number, name in enumerate(("reward_head.query.weight", queries))
    ]
    torch.testing.assert_close(*scores)


def test_settings_that_no_weight_tells_come_from_the_config(state: dict[str, Tensor], tmp_path: Path) -> None:
    expected = score(tiny_prm.write(tmp_path / "silu", state))
    for name, settings in (
        ("relu", {"activation": "relu"}),
        ("one", {"attention_heads": 1}),
        ("rope", {"rope_theta": 9}),
    ):
        assert not torch.equal(score(tiny_prm.write(tmp_path / name, state, **settings)), expected)
    with pytest.warns(UserWarning, match=r"states the activation of the head, .* SiLU is taken. State it as `activ"):
        torch.testing.assert_close(score(tiny_prm.write(tmp_path / "none", state, activation=None)), expected)


class Doubled(nn.Module):
    """A head of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(16))

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens.amax(dim=1) * self.scale).sum(dim=-1, keepdim=True)


def test_a_head_of_another_kind_may_be_passed(state: dict[str, Tensor], tmp_path: Path) -> None:
    trunk = {key: value for key, value in state.items() if key.startswith("backbone.")}
    folder = tiny_prm.write(tmp_path, {**trunk, "scale": torch.ones(16)})
    with pytest.raises(ValueError, match="but it has too many: scale; pass the module that reads them as `head`"):
        score(folder)
    reward = LatentPRM.from_pretrained(folder, head=Doubled())
    assert reward.reward_head.scale.eq(1).all() and reward(*NOISY).shape == (1, 1)
    folder = tiny_prm.write(tmp_path / "b", {**trunk, "other": torch.ones(16)})
    with pytest.raises(ValueError, match="but it lacks scale"):
        LatentPRM.from_pretrained(folder, head=Doubled())


TO_Q = "backbone.transformer_blocks.1.attn.to_q.weight"
BAD: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "a weight of a block": (lambda state: state.pop(TO_Q), "but it lacks transformer_blocks.1.attn.to_q.weight"),
    "a block between others": (
        lambda state: [state.pop(key) for key in [*state] if ".transformer_blocks.0." in key],
        "they lack transformer_blocks.0.attn.norm_q.weight and single_transformer_blocks.0.attn.norm_q.weight"
        "|lacks transformer_blocks.0",
    ),
    "a weight too many": (
        lambda state: state.update({"backbone.transformer_blocks.0.extra.weight": torch.ones(2)}),
        "has too many:  *transformer_blocks.0.extra.weight",
    ),
    "of another shape": (
        lambda state: state.update({TO_Q: torch.ones(3, 16)}),
        "has another shape of transformer_blocks.1.attn.to_q.weight",
    ),
    "no trunk": (
        lambda state: [state.pop(key) for key in [*state] if key.startswith("backbone.")],
        "Expected one trunk of HunyuanVideo by its names in diffusers in .* but found reward_head.attention.0.in",
    ),
    "two trunks": (
        lambda state: state.update({"b.x_embedder.proj.weight": torch.ones(1)}),
        "but found several: b.x_embedder.proj.weight, backbone.x_embedder.proj.weight",
    ),
    "no text": (
        lambda state: state.pop("backbone.context_embedder.proj_in.weight"),
        "they lack context_embedder.proj_in.weight; download",
    ),
    "no head": (
        lambda state: [state.pop(key) for key in [*state] if key.startswith("reward_head.")],
        "these do not follow on each other: none; pass the module",
    ),
    "half an attention": (
        lambda state: state.pop("reward_head.attention.0.out_proj.bias"),
        "lacks reward_head.attention.0.out_proj.bias",
    ),
    "no query": (lambda state: state.pop("reward_head.query.weight"), "but it lacks the query"),
    "layers that do not fit": (
        lambda state: state.pop("reward_head.mlp.3.weight"),
        "these do not follow on each other: reward_head.attention",
    ),
    "a norm in the head": (
        lambda state: state.update({"reward_head.norm.weight": torch.ones(16)}),
        "has too many: reward_head.norm.weight; pass the module",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_missing_and_surplus_keys_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    change(state)
    with pytest.raises(ValueError, match=message):
        LatentPRM.from_pretrained(tiny_prm.write(tmp_path, state))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_axes_dim": [2, 2, 2]}, "to sum to 8, the size of a head in .*, but got 2, 2, 2; state them as"),
        ({"rope_axes_dim": None}, "but got 16, 56, 56"),
        ({"attention_heads": 3}, "Expected `attention_heads` that divide 16, but got 3"),
        ({"activation": "step"}, "Expected `activation` from silu, relu, gelu, but got 'step'"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(
    settings: dict[str, Any], message: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        score(tiny_prm.write(tmp_path, state, **settings))


def test_folders_that_do_not_fit_are_one_sentence(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected the weights of a latent PRM in .*, but found none; download it"):
        LatentPRM.from_pretrained(tmp_path / "nowhere")
    folder = tiny_prm.write(tmp_path / "outer" / "inner", state)
    with pytest.raises(ValueError, match="found none; name its folder inner"):
        LatentPRM.from_pretrained(folder.parent)
    save_file({TO_Q: state[TO_Q]}, folder / "again.safetensors")
    with pytest.raises(
        ValueError, match="Expected each weight once in .*, but model.safetensors has .*to_q.weight again"
    ):
        LatentPRM.from_pretrained(folder)
    (folder / "again.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"again.safetensors, but it cannot be read"):
        LatentPRM.from_pretrained(folder)
    (folder / "again.safetensors").unlink()
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected settings in .*config.json, but it cannot be read"):
        LatentPRM.from_pretrained(folder)
    (tmp_path / "mixed").mkdir()
    torch.save({**state, "step": 7}, tmp_path / "mixed" / "a.pt")
    with pytest.raises(ValueError, match=r"Expected weights alone in .*a.pt, but it has step too"):
        LatentPRM.from_pretrained(tmp_path / "mixed")


def test_it_is_no_judge_of_frames_and_stands_alone() -> None:
    with pytest.raises(
        ValueError, match="Expected a reward that sees frames, but 'latent-prm' sees the noisy latents"
    ):
        load_named("latent-prm")
    with pytest.raises(ValueError, match="did you mean 'latent-prm'"):
        reward_for(None, "latent-pmr")
    with pytest.raises(ValueError, match="published rewards by name, but 'latent-prm' is a latent reward"):
        reward_for(None, {"latent-prm": 1, "aesthetic": 1})
