"""The published DiNa-LRM, on a tiny random Stable Diffusion 3 transformer in the published layout.

The second source is peft and diffusers for the trunk, and the formulas of the paper written out over the published
names for the head.
"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tiny_families import TINY
from torch import nn
from torch.nn import functional

from nrg_sampler import RewardGuidance, attach
from nrg_sampler.rewards import Conditioning, DiNaReward
from nrg_sampler.rewards.base import check_reward

# peft about a property of transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
DIM, TEXT, POOLED, WIDTH, BLOCKS = 16, 16, 8, 16, 2
HEAD = {"width": -1, "out_dim": 1, "num_queries": 3, "num_attn_heads": 2, "dropout": 0.0, "use_proj_in": False}


def settings(**changed):
    model = {
        "backbone_model_id": "./base", "num_transformer_layers": BLOCKS, "freeze_backbone": False, "use_lora": True,
        "use_logistic": False, "visual_head_idx": [1, 2], "text_head_idx": [0, 2], "reward_head": HEAD, **changed,
    }  # fmt: skip
    return {"model": model, "training": {"add_noise": True}}


def transformer():
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=DIM, pooled_projection_dim=POOLED,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    ).eval()  # fmt: skip


class Trunk(nn.Module):
    """What the adapters were trained on: the first blocks under their own names."""

    def __init__(self, whole):
        super().__init__()
        for name in ("pos_embed", "time_text_embed", "context_embedder"):
            setattr(self, name, getattr(whole, name))
        self.transformer_blocks = whole.transformer_blocks[:BLOCKS]


def linear(state, name, out, into, generator):
    state[f"{name}.weight"] = torch.randn(out, into, generator=generator) / into**0.5
    state[f"{name}.bias"] = torch.randn(out, generator=generator) / 4


def published_head():
    """Random weights under the published names."""
    state, generator = {}, torch.Generator().manual_seed(1)
    for kind in ("visual", "text"):
        for index in range(2):
            name = f"layer_adapters_{kind}.{index}"
            state[f"{name}.layer_embed"] = torch.randn(1, 1, WIDTH, generator=generator)
            linear(state, f"{name}.cond_mlp.0", 2 * WIDTH, DIM, generator)
            linear(state, f"{name}.cond_mlp.2", 2 * WIDTH, 2 * WIDTH, generator)
            linear(state, f"{name}.proj", WIDTH // 4, WIDTH, generator)
        linear(state, f"agg_{kind}", WIDTH, 2 * (WIDTH // 4), generator)
    state["query_tokens"] = torch.randn(1, 3, WIDTH, generator=generator)
    for read, kinds in (("attn1", ("vis", "text")), ("attn2", ("vis",))):
        for norm in ("norm_q", "norm_v", *(["norm_t"] if "text" in kinds else [])):
            state[f"{read}.{norm}.weight"] = torch.rand(WIDTH, generator=generator) + 0.5
        linear(state, f"{read}.to_q", WIDTH, WIDTH, generator)
        linear(state, f"{read}.to_out.0", WIDTH, WIDTH, generator)
        for kind in kinds:
            linear(state, f"{read}.to_k_{kind}", WIDTH, WIDTH, generator)
            linear(state, f"{read}.to_v_{kind}", WIDTH, WIDTH, generator)
            if read == "attn1":
                linear(state, f"{read}.gate_{kind}.0", WIDTH, WIDTH, generator)
                linear(state, f"{read}.gate_{kind}.2", 1, WIDTH, generator)
    state["norm_ff.weight"] = torch.rand(WIDTH, generator=generator) + 0.5
    linear(state, "ff.0", 4 * WIDTH, WIDTH, generator)
    linear(state, "ff.2", WIDTH, 4 * WIDTH, generator)
    linear(state, "head", 1, WIDTH, generator)
    return state


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published folder, the trunk with its adapters as peft holds it, and the number of keys."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("dina")
    whole = transformer()
    whole.save_pretrained(folder / "base" / "transformer")
    tuned = get_peft_model(Trunk(transformer()), LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(2)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:  # zero when a training begins
            weight.data.normal_(0, 0.3, generator=generator)
    tuned.save_pretrained(folder / "checkpoint" / "backbone_lora")
    torch.save(published_head(), folder / "checkpoint" / "rm_head.pt")
    (folder / "config.json").write_text(json.dumps(settings(backbone_model_id=str(folder / "base"))))
    adapters = sum("lora_" in name for name, _ in tuned.named_parameters())
    return SimpleNamespace(folder=folder, whole=whole, tuned=tuned.eval(), keys=len(published_head()) + adapters)


@pytest.fixture
def noisy():
    """Latents, noise levels and a prompt."""
    generator = torch.Generator().manual_seed(3)
    embeds, pooled = torch.randn(2, 5, TEXT, generator=generator), torch.randn(2, POOLED, generator=generator)
    latents = torch.randn(2, 4, 1, 8, 12, generator=generator)
    return latents, torch.tensor([0.1, 0.7]), Conditioning(embeds, pooled=pooled)


def expected(tuned, state, latents, sigma, conditioning):
    """Scores by the published formulas."""

    def lin(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, x):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * state[f"{name}.weight"]

    def adapted(kind, features, time):
        parts = []
        for index, x in enumerate(features):
            name = f"layer_adapters_{kind}.{index}"
            gamma, beta = lin(f"{name}.cond_mlp.2", functional.silu(lin(f"{name}.cond_mlp.0", time))).chunk(2, -1)
            parts.append(lin(f"{name}.proj", x * (1 + gamma[:, None]) + beta[:, None] + state[f"{name}.layer_embed"]))
        return lin(f"agg_{kind}", torch.cat(parts, -1))

    def attention(q, k, v):
        outs = []
        for head in range(2):
            part = slice(head * WIDTH // 2, (head + 1) * WIDTH // 2)
            weights = (q[..., part] @ k[..., part].mT / (WIDTH // 2) ** 0.5).softmax(-1)
            outs.append(weights @ v[..., part])
        return torch.cat(outs, -1)

    def read(name, queries, tokens, gated):
        q, total = lin(f"{name}.to_q", norm(f"{name}.norm_q", queries)), 0
        for kind, x in tokens.items():
            x = norm(f"{name}.{'norm_v' if kind == 'vis' else 'norm_t'}", x)
            v = lin(f"{name}.to_v_{kind}", x)
            if gated:
                v = v * lin(f"{name}.gate_{kind}.2", functional.silu(lin(f"{name}.gate_{kind}.0", x))).sigmoid()
            total = total + attention(q, lin(f"{name}.to_k_{kind}", x), v)
        return queries + lin(f"{name}.to_out.0", total)

    inner = tuned.base_model.model
    picture, text = inner.pos_embed(latents[:, :, 0]), inner.context_embedder(conditioning.prompt_embeds)
    time = inner.time_text_embed(1000 * sigma, conditioning.pooled)
    pictures, texts = [picture], [text]
    for block in inner.transformer_blocks:
        text, picture = block(hidden_states=picture, encoder_hidden_states=text, temb=time)
        pictures.append(picture)
        texts.append(text)
    seen = adapted("visual", [pictures[1], pictures[2]], time)
    words = adapted("text", [texts[0], texts[2]], time)
    queries = read("attn1", state["query_tokens"].expand(len(latents), -1, -1), {"vis": seen, "text": words}, True)
    queries = read("attn2", queries, {"vis": seen}, False)
    queries = queries + lin("ff.2", functional.gelu(lin("ff.0", norm("norm_ff", queries))))
    return lin("head", queries).mean(dim=1)


def test_scores_as_the_published_model_and_counts_every_key(published, noisy):
    reward = DiNaReward.from_pretrained(published.folder)
    assert reward.loaded_keys == published.keys
    with torch.no_grad():
        wanted = expected(published.tuned, published_head(), *noisy)
        torch.testing.assert_close(reward(*noisy), wanted, rtol=1e-4, atol=1e-5)
    assert (wanted[0] - wanted[1]).abs() > 1e-3
    check_reward(reward)


def test_the_base_may_be_a_pipelines_own_transformer_which_stays_as_it_is(published, noisy):
    before = {name: value.clone() for name, value in published.whole.state_dict().items()}
    reward = DiNaReward.from_pretrained(published.folder, base=published.whole)
    with torch.no_grad():
        assert torch.equal(reward(*noisy), DiNaReward.from_pretrained(published.folder)(*noisy))
    assert all(torch.equal(value, before[name]) for name, value in published.whole.state_dict().items())


def test_a_trunk_trained_without_adapters(published, noisy, tmp_path):
    merged = DiNaReward.from_pretrained(published.folder)
    (tmp_path / "checkpoint").mkdir()
    torch.save(merged.state_dict(), tmp_path / "checkpoint" / "full_model.pt")
    (tmp_path / "config.json").write_text(json.dumps(settings(use_lora=False)))
    whole = DiNaReward.from_pretrained(tmp_path, base=published.whole)
    assert whole.loaded_keys == len(merged.state_dict())
    with torch.no_grad():
        assert torch.equal(whole(*noisy), merged(*noisy))

    torch.save(published_head(), tmp_path / "checkpoint" / "rm_head.pt")  # frozen: the head alone
    model = settings(use_lora=False, freeze_backbone=True)["model"]
    lines = ["model:", *(f"  {name}: {json.dumps(value)}" for name, value in model.items())]
    (tmp_path / "config.json").write_text("\n".join(lines))  # YAML, as its own tools write it
    frozen = DiNaReward.from_pretrained(tmp_path, base=published.whole)
    assert frozen.loaded_keys == len(published_head())
    with torch.no_grad():
        assert not torch.equal(frozen(*noisy), merged(*noisy))


def test_checkpointing_changes_no_gradient(published, noisy):
    latents, sigma, conditioning = noisy
    reward = DiNaReward.from_pretrained(published.folder)
    gradients = []
    for checkpointing in (False, True):
        reward.gradient_checkpointing = checkpointing
        leaf = latents.clone().requires_grad_()
        gradients += torch.autograd.grad(reward(leaf, sigma, conditioning).sum(), leaf)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_guides_a_stable_diffusion_3_pipeline_by_the_positive_prompt(published):
    tiny = TINY["Stable Diffusion 3"]()
    tiny.pipe.register_modules(transformer=transformer())
    reward = DiNaReward.from_pretrained(published.folder, base=tiny.pipe.transformer)
    seen, forward = [], reward.forward

    def spy(latents, sigma, conditioning):
        seen.append((latents.shape, conditioning.prompt_embeds.detach(), conditioning.pooled.detach()))
        return forward(latents, sigma, conditioning)

    reward.forward = spy
    arguments = {**tiny.arguments, **tiny.size, "num_inference_steps": 3, "output_type": "latent"}
    with attach(tiny.pipe, reward, RewardGuidance(scale=1.0)) as trace:
        tiny.pipe(**arguments, generator=torch.Generator().manual_seed(0))
    assert any(row.get("push_ratio", 0) > 0 for row in trace.rows())
    shape, embeds, pooled = seen[0]
    assert len(shape) == 5
    assert shape[2] == 1
    torch.testing.assert_close(embeds, tiny.arguments["prompt_embeds"].float())
    torch.testing.assert_close(pooled, tiny.arguments["pooled_prompt_embeds"].float())


def changed_file(file, change):
    """Rewrite a file of tensors after ``change``."""
    from safetensors.torch import load_file, save_file

    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    change(state)
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)


LORA = "base_model.model.transformer_blocks.1.attn.to_q.lora_A.weight"
BAD_KEYS = {
    "head lacks": ("rm_head.pt", lambda state: state.pop("attn1.norm_t.weight"), "lacks attn1.norm_t.weight"),
    "head has too many": ("rm_head.pt", lambda state: state.update(eta3=torch.ones(1)), "has too many: +eta3"),
    "head of another size": (
        "rm_head.pt",
        lambda state: state.update(query_tokens=torch.ones(1, 4, WIDTH)),
        "another shape of query_tokens",
    ),
    "half an adapter": (
        "backbone_lora/adapter_model.safetensors", lambda state: state.pop(LORA),
        "one half of the adapter of transformer_blocks.1.attn.to_q.weight",
    ),
    "an adapter missing": (
        "backbone_lora/adapter_model.safetensors",
        lambda state: [state.pop(LORA), state.pop(LORA.replace("lora_A", "lora_B"))],
        "lacks transformer_blocks.1.attn.to_q.weight",
    ),
    "an adapter of nothing": (
        "backbone_lora/adapter_model.safetensors",
        lambda state: state.update({LORA.replace("blocks.1", "blocks.9"): torch.ones(2, 16)}),
        "has too many: +transformer_blocks.9.attn.to_q.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("file", "change", "message"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_missing_or_surplus_key_is_named(published, tmp_path, file, change, message):
    folder = tmp_path / "copy"
    shutil.copytree(published.folder, folder)
    changed_file(folder / "checkpoint" / file, change)
    with pytest.raises(ValueError, match=message):
        DiNaReward.from_pretrained(folder, base=published.whole)


BAD_FOLDERS = {
    "no settings": ("config.json", "{", "Expected the published DiNa-LRM settings in"),
    "too many blocks": (
        "config.json", json.dumps(settings(num_transformer_layers=9)), "Expected a transformer of 9 blocks",
    ),
    "logistic": ("config.json", json.dumps(settings(use_logistic=True)), "Expected use_logistic false"),
    "damaged head": ("checkpoint/rm_head.pt", "nothing", "rm_head.pt, but it cannot be read"),
    "no adapter settings": ("checkpoint/backbone_lora/adapter_config.json", "{}", "Expected adapter_config.json in"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "text", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_does_not_fit_is_one_sentence(published, tmp_path, file, text, message):
    folder = tmp_path / "copy"
    shutil.copytree(published.folder, folder)
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        DiNaReward.from_pretrained(folder, base=published.whole)


def test_says_what_is_wrong(published, noisy, wan, tmp_path):
    reward = DiNaReward.from_pretrained(published.folder, base=published.whole)
    latents, sigma, conditioning = noisy
    with pytest.raises(ValueError, match=r"Expected latents of one picture, \(B, C, 1, H, W\), but got"):
        reward(latents.expand(-1, -1, 3, -1, -1), sigma, conditioning)
    with pytest.raises(ValueError, match="but got no pooled prompt; guide with `attach`"):
        reward(latents, sigma, Conditioning(conditioning.prompt_embeds))
    with pytest.raises(ValueError, match="Expected a Stable Diffusion 3 pipeline, as this reward was trained on"):
        check_reward(reward, wan)
    other = SimpleNamespace(transformer=transformer())
    other.transformer.register_to_config(in_channels=8)
    with pytest.raises(ValueError, match="Expected a transformer with `in_channels` 4, as this reward"):
        reward.check_compatible(other)
    with pytest.raises(ValueError, match="Expected an SD3Transformer2DModel as the base, but got Linear"):
        DiNaReward.from_pretrained(published.folder, base=nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"Expected the base model of DiNa-LRM in '.*nowhere'"):
        DiNaReward.from_pretrained(published.folder, base=tmp_path / "nowhere")
