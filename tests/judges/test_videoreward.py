"""The published VideoReward, on a tiny random Qwen2-VL in the published layout.

The second source is peft and transformers themselves: the checkpoint is written by a peft model, under the names that
its training had, and what is expected is what that model says.
"""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from tiny_videoreward import LORA, STATISTICS, TEMPLATE, old_name, settings, write_base
from torch import nn

from nrg_sampler import NRGFlowPipeline, cli
from nrg_sampler.judges.base import chooser
from nrg_sampler.judges.loading import load_judge
from nrg_sampler.judges.videoreward import VideoReward
from nrg_sampler.rewards import published
from nrg_sampler.rewards.named.qwen_frames import patchified, resized, sampled
from nrg_sampler.rewards.named.videoreward import TOKENS
from nrg_sampler.search import best_of_n
from nrg_sampler.video import read_mp4, write_mp4

# peft about a property of transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A published folder for each layout, and the peft model that both came from."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("videoreward")
    base, vocabulary = write_base(folder / "base")
    (folder / "model_config.json").write_text(json.dumps(settings()))
    (folder / "prompt_template.py").write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {TEMPLATE!r}\n")
    base.resize_token_embeddings(vocabulary, mean_resizing=False)
    base.rm_head = nn.Linear(32, 1, bias=False)
    language = [
        name for name, part in base.named_modules() if isinstance(part, nn.Linear) and "language_model" in name
    ]
    model = get_peft_model(base, LoraConfig(target_modules=language, r=LORA["lora_r"], lora_alpha=LORA["lora_alpha"]))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero when a training begins
            weight.data.normal_(0, 0.2, generator=generator)
    state = {old_name(key): value.clone() for key, value in model.state_dict().items()}

    full, adapter = folder / "checkpoint-11352", tmp_path_factory.mktemp("adapter")
    full.mkdir()
    torch.save(state, full / "model.pth")
    (folder / "checkpoint-9").mkdir()  # an earlier one, which must not be taken
    for name in ("base", "model_config.json", "prompt_template.py"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, adapter / name)
    step = adapter / "checkpoint-11352"
    step.mkdir()
    save_file(
        {key.replace(".default.", "."): value for key, value in state.items() if "lora_" in key},
        step / "adapter_model.safetensors",
    )
    others = {
        key: value
        for key, value in state.items()
        if "lora_" not in key and ("visual" in key or "rm_head" in key or "embed_tokens" in key)
    }
    torch.save(others, step / "non_lora_state_dict.pth")
    return folder, adapter, model.eval(), len(state)


@pytest.fixture
def clip():
    return torch.rand(3, 13, 56, 84, generator=torch.Generator().manual_seed(2))


def expected(model, reward, clip, prompt, fps):
    """The published forward pass with the unmerged peft model: embeddings put in place, the language model called."""
    frames = (clip.transpose(0, 1) * 255).round().to(torch.uint8)
    frames = frames[sampled(len(frames), fps, {"fps": 2.0})]
    patches, grid = patchified(resized(frames, 200704))
    inner = model.base_model.model
    tokens = reward.network.token_ids(prompt, grid[0] * grid[1] * grid[2] // 4)
    with torch.no_grad():
        seen = inner.model.visual(patches, grid_thw=torch.tensor([grid])).pooler_output
        embeds = inner.model.language_model.embed_tokens(tokens)
        mask = (tokens == inner.config.video_token_id)[..., None].expand_as(embeds)
        hidden = inner.model.language_model(inputs_embeds=embeds.masked_scatter(mask, seen)).last_hidden_state
        logits = inner.rm_head(hidden)[0, :, 0]
    special = torch.isin(tokens[0], torch.tensor(reward.network.reward_tokens))
    raw = logits[special]  # in the order of the text
    mean, std = (
        torch.tensor([STATISTICS[f"{axis}_{name}"] for axis in ("VQ", "MQ", "TA")]) for name in ("mean", "std")
    )
    return (raw - mean) / std


@pytest.mark.parametrize("layout", [0, 1], ids=["model.pth", "adapter and the rest"])
def test_both_layouts_score_as_the_model_that_was_trained(trained, clip, layout):
    reward = VideoReward.from_pretrained(trained[layout])
    scores = reward(clip[None], ["a red circle"], fps=8.0)
    assert scores.shape == (1, 3)
    torch.testing.assert_close(
        scores[0], expected(trained[2], reward, clip, "a red circle", 8.0), rtol=1e-4, atol=1e-5
    )


def test_every_key_is_mapped_and_counted(trained):
    folder, _, _, keys = trained
    assert VideoReward.from_pretrained(folder).network.loaded_keys == keys
    step = trained[1] / "checkpoint-11352"
    parts = [published.load_state(step / name) for name in ("adapter_model.safetensors", "non_lora_state_dict.pth")]
    assert VideoReward.from_pretrained(trained[1]).network.loaded_keys == sum(map(len, parts))
    state = torch.load(folder / "checkpoint-11352" / "model.pth", weights_only=True)
    found = published.PublishedWeights.of(state)
    assert found.keys == keys
    assert found.unused == ["base_model.model.lm_head.weight"]
    assert len(found.adapters) == 2 * 7  # layers, linear maps of each


def test_old_and_current_names_mean_the_same():
    pairs = {
        "base_model.model.visual.blocks.0.attn.qkv.weight": "model.visual.blocks.0.attn.qkv.weight",
        "base_model.model.model.visual.blocks.0.attn.qkv.weight": "model.visual.blocks.0.attn.qkv.weight",
        "base_model.model.model.layers.1.mlp.up_proj.base_layer.weight": (
            "model.language_model.layers.1.mlp.up_proj.weight"
        ),
        "model.layers.1.input_layernorm.weight": "model.language_model.layers.1.input_layernorm.weight",
        "base_model.model.model.language_model.norm.weight": "model.language_model.norm.weight",
        "base_model.model.rm_head.modules_to_save.default.weight": "rm_head.weight",
    }
    assert {key: published.current_name(key) for key in pairs} == pairs


def test_an_adapter_of_embeddings_is_transposed():
    a, b = torch.randn(2, 5), torch.randn(3, 2)
    found = published.PublishedWeights.of({"embed.lora_embedding_A": a, "embed.lora_embedding_B": b})
    merged = found.merged(0.5, {"embed.weight": torch.zeros(5, 3)})
    torch.testing.assert_close(merged["embed.weight"], 0.5 * (b @ a).T)


def changed(trained, tmp_path, change):
    """A copy of the published folder whose model.pth went through ``change``."""
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    file = folder / "checkpoint-11352" / "model.pth"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    return folder


def test_a_missing_or_surplus_key_is_named(trained, tmp_path):
    lacking = changed(trained, tmp_path / "a", lambda state: state.pop("base_model.model.model.norm.weight"))
    with pytest.raises(ValueError, match=r"it lacks model.language_model.norm.weight"):
        VideoReward.from_pretrained(lacking)
    extra = changed(
        trained, tmp_path / "b", lambda state: state.update({"base_model.model.visual.extra": torch.ones(1)})
    )
    with pytest.raises(ValueError, match=r"it has too many: +model.visual.extra"):
        VideoReward.from_pretrained(extra)
    wrong = changed(
        trained, tmp_path / "c", lambda state: state.update({"base_model.model.rm_head.weight": torch.ones(2, 32)})
    )
    with pytest.raises(ValueError, match=r"another shape of rm_head.weight"):
        VideoReward.from_pretrained(wrong)
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight"
    half = changed(trained, tmp_path / "d", lambda state: state.pop(name))
    with pytest.raises(
        ValueError, match=r"one half of the adapter of model.language_model.layers.0.mlp.up_proj.weight"
    ):
        VideoReward.from_pretrained(half)


def test_an_adapter_layout_without_the_reward_tokens_is_refused(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[1], folder)
    file = folder / "checkpoint-11352" / "non_lora_state_dict.pth"
    state = torch.load(file, weights_only=True)
    torch.save({key: value for key, value in state.items() if "embed_tokens" not in key}, file)
    with pytest.raises(ValueError, match=r"it lacks model.language_model.embed_tokens.weight"):
        VideoReward.from_pretrained(folder)


def test_quality_and_motion_are_blind_to_the_prompt_and_alignment_is_not(trained, clip):
    reward = VideoReward.from_pretrained(trained[0])
    red, blue = reward(torch.stack([clip, clip]), ["a red circle", "a blue circle"], fps=8.0)
    torch.testing.assert_close(red[:2], blue[:2])
    assert (red[2] - blue[2]).abs() > 1e-4


def test_the_reward_tokens_come_last_in_the_published_order(trained):
    reward = VideoReward.from_pretrained(trained[0])
    size = len(reward.network.tokenizer)
    assert reward.network.reward_tokens == [size - 3, size - 2, size - 1]
    tokens = reward.network.token_ids("a red circle", 4)[0].tolist()
    assert [tokens.index(token) for token in reward.network.reward_tokens] == sorted(
        tokens.index(token) for token in reward.network.reward_tokens
    )


def test_the_rate_decides_which_frames_are_seen(trained, clip):
    data = {"fps": 2.0}
    assert sampled(13, 8.0, data) == [0, 4, 8, 12]  # 1.6 s ask for 3.25 frames; the fewest are 4
    assert len(sampled(81, 16.0, data)) == 10
    assert len(sampled(81, 8.0, data)) == 20
    assert sampled(3, 8.0, data) == [0, 2]
    assert len(sampled(81, 16.0, {"num_frames": 5})) == 4
    with pytest.raises(ValueError, match="Expected a video of 2 frames or more, but got 1"):
        sampled(1, 8.0, data)
    reward = VideoReward.from_pretrained(trained[0])
    slow, fast = (reward(clip[None], ["a red circle"], fps=fps)[0] for fps in (2.0, 24.0))
    assert (slow - fast).abs().max() > 1e-5


def test_an_output_for_each_token_is_read_from_the_diagonal(trained, clip, tmp_path):
    columns = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    folder = changed(trained, tmp_path, lambda state: state.update({"base_model.model.rm_head.weight": columns}))
    (folder / "model_config.json").write_text(json.dumps({**settings(output_dim=3), "inference_config": None}))
    reward = VideoReward.from_pretrained(folder)
    scores = reward(clip[None], ["a red circle"], fps=8.0)[0]
    for axis in range(3):
        reward.network.head.weight = nn.Parameter(columns[axis : axis + 1].clone())
        torch.testing.assert_close(reward(clip[None], ["a red circle"], fps=8.0)[0, axis], scores[axis])


def spoil(folder, file, text):
    (folder / file).write_text(text)


BAD_FOLDERS = {
    "no settings": ("model_config.json", "{", "Expected the published VideoReward settings"),
    "another rate rule": (
        "model_config.json", json.dumps(settings(sample_type="multi_pts")), "Expected sample_type 'uniform'",
    ),
    "no question": ("prompt_template.py", "x = 1", "copy prompt_template.py of github.com/KwaiVGI/VideoAlign"),
    "another order": (
        "prompt_template.py",
        f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {'{text_prompt} ' + ' '.join(TOKENS)!r}",
        "in this order",
    ),
    "damaged weights": ("checkpoint-11352/model.pth", "nothing", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "text", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_that_does_not_fit_is_one_sentence(trained, tmp_path, file, text, message):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    spoil(folder, file, text)
    with pytest.raises(ValueError, match=message):
        VideoReward.from_pretrained(folder)


def test_what_is_missing_is_named(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    with pytest.raises(ValueError, match="Expected a folder checkpoint-<step>"):
        VideoReward.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"Expected config.json in .*nowhere.*, or pass the folder of .* as `base`"):
        VideoReward.from_pretrained(trained[0], base=tmp_path / "nowhere")
    reward = VideoReward.from_pretrained(trained[0])
    with pytest.raises(ValueError, match="Expected a video of 2 frames or more, but got 1"):
        reward(torch.rand(1, 3, 1, 28, 28), ["a"], fps=8.0)
    with pytest.raises(ValueError, match="Expected a prompt without the tokenizer's marks"):
        reward(torch.rand(1, 3, 4, 28, 28), ["<|VQ_reward|>"], fps=8.0)


ASKED = "a red circle moving right on a plain background"


@pytest.fixture(scope="module")
def judge_name(trained):
    return f"videoreward:{trained[0]}"


def test_scores_a_video_file_by_name(trained, judge_name, clip, tmp_path, capsys):
    video = tmp_path / "clip.mp4"
    write_mp4((clip.permute(1, 2, 3, 0) * 255).round().byte().numpy(), video, 8)
    assert cli.main(["score", str(video), "--prompt", ASKED, "--judge", judge_name, "--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)["scores"]["videoreward"]
    frames, fps = read_mp4(video)
    pixels = torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None] / 255
    wanted = VideoReward.from_pretrained(trained[0])(pixels, [ASKED], fps)[0].tolist()
    assert list(said) == ["VQ", "MQ", "TA"]
    assert list(said.values()) == pytest.approx(wanted, abs=1e-3)


def test_grades_both_sides_of_a_comparison(judge_name, tmp_path, capsys):
    out = ["--out", str(tmp_path / "pair.mp4"), "--device", "cpu", "--json"]
    assert cli.main(["compare", ASKED, "--steps", "2", "--judge", judge_name, *out]) == 0
    result, _ = map(json.loads, capsys.readouterr().out.splitlines())
    before, after = (clip["scores"]["videoreward"] for clip in result["clips"])
    assert list(before) == list(after) == ["VQ", "MQ", "TA"]
    changed = {axis: round(after[axis] - value, 4) for axis, value in before.items()}
    assert result["change"]["videoreward"] == pytest.approx(changed, abs=1e-3)


def test_grades_in_the_tables_beside_the_oracle(judge_name, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--n", "1", "--steps", "2", "--split", "validation", "--arms", "1:1:1", "--out", str(tmp_path)]
    assert cli.main(["evaluate", *options, "--judges", f"oracle,{judge_name}", "--json"]) == 0
    summaries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [summary["judge"] for summary in summaries] == ["oracle", "videoreward"]
    with open(tmp_path / "clips-validation.csv") as stream:
        assert all(float(row["videoreward_TA"]) == float(row["videoreward_TA"]) for row in csv.DictReader(stream))


def test_chooses_the_best_of_several(judge_name, wan):
    pipe = NRGFlowPipeline.from_pipe(wan)
    sampling = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "max_sequence_length": 8}
    sampling |= {"reward_scale": 0.0, "output_type": "pt"}
    judge = load_judge(judge_name)
    found = best_of_n(pipe, "a red circle", n=3, judge=chooser(judge, 8.0, "VQ=1,TA=2"), **sampling)
    alone = [
        pipe("a red circle", generator=torch.Generator().manual_seed(seed), **sampling).frames.transpose(1, 2)
        for seed in range(3)
    ]
    said = torch.stack([judge(frames, ["a red circle"], 8.0)[0] for frames in alone])
    wanted = said[:, 0] + 2 * said[:, 2]
    assert found.seeds == [int(wanted.argmax())]
    torch.testing.assert_close(found.scores[0], wanted.max(), rtol=1e-2, atol=1e-2)
