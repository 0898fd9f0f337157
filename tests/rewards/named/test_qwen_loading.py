"""Files of VideoReward and HPSv3, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_qwen
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nrg_sampler.judges.loading import judge_identity, load_judge
from nrg_sampler.rewards.named import load_named
from nrg_sampler.rewards.named.files import Place
from nrg_sampler.rewards.named.loading import resolve

QUESTION = {"videoreward": "prompt_template.py", "hpsv3": "data_collator_qwen.py"}
FRAMES = torch.full((1, 3, 2, 28, 28), 0.5)
State = dict[str, Tensor]


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a reward's folder that a test may damage."""
    return lambda name: Path(shutil.copytree(folders[name], tmp_path / "copy"))


def change(name: str, folder: Path, how: Callable[[State], object]) -> None:
    """Change the published weights in place."""
    if name == "hpsv3":
        state = load_file(folder / "HPSv3.safetensors")
        how(state)
        save_file(state, folder / "HPSv3.safetensors")
        return
    file = folder / "checkpoint-11352" / "model.pth"
    state = torch.load(file)
    how(state)
    torch.save(state, file)


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_a_folder_alone_and_a_hub_id_mean_it(name: str, folders: dict[str, Path]) -> None:
    assert resolve(str(folders[name]))[0].name == name
    entry = resolve(name)[0]
    assert resolve(entry.source) == (entry, None)


def test_the_judge_of_files_has_the_alias_of_nothing_else() -> None:
    assert resolve("VideoAlign")[0].name == resolve("video_reward")[0].name == "videoreward"


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "but it lacks model.language_model.norm.weight"),
        (lambda state: state.pop("visual.merger.ln_q.bias"), "but it lacks model.visual.merger.ln_q.bias"),
        (lambda state: state.update({"visual.more": torch.ones(1)}), r"but it has too many: +model.visual.more"),
        (lambda state: state.update({"rm_head.6.weight": torch.ones(1)}), r"but it has too many: +rm_head.6.weight"),
        (lambda state: state.update({"model.norm.weight": torch.ones(3)}), "has another shape of model.language_mod"),
    ],
)
def test_missing_and_surplus_keys_are_named(
    name: str, how: Callable[[State], object], message: str, copied: Callable[[str], Path]
) -> None:
    folder = copied(name)
    change(name, folder, how)
    with pytest.raises(ValueError, match=message):
        load_named(f"{name}:{folder}")


def test_an_adapter_in_hpsv3_is_too_many(copied: Callable[[str], Path]) -> None:
    folder, key = copied("hpsv3"), "model.layers.0.mlp.up_proj.lora_A.weight"
    change("hpsv3", folder, lambda state: state.update({key: torch.ones(2, 32)}))
    with pytest.raises(ValueError, match=r"has too many: +model.language_model.layers.0.mlp.up_proj.lora_A.weight"):
        load_named(f"hpsv3:{folder}")


def test_current_names_mean_the_same(copied: Callable[[str], Path]) -> None:
    folder = copied("hpsv3")
    before = load_named(f"hpsv3:{folder}")(FRAMES, ["a"])

    def renamed(state: State) -> None:
        for key in list(state):
            inner = key.removeprefix("model.")
            new = f"model.language_model.{inner}" if inner != key else f"model.{key}"
            state[key if key.startswith(("rm_head", "lm_head")) else new] = state.pop(key)

    change("hpsv3", folder, renamed)
    torch.testing.assert_close(load_named(f"hpsv3:{folder}")(FRAMES, ["a"]), before)


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_the_question_may_lie_where_torch_keeps_downloads(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, place = copied(name), tmp_path / "torch" / "checkpoints"
    expected = load_named(f"{name}:{folder}").question
    place.mkdir(parents=True)
    shutil.move(folder / QUESTION[name], place / QUESTION[name])
    judge = load_named(f"{name}:{folder}")
    assert judge.question == expected == tiny_qwen.QUESTIONS[name]


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
@pytest.mark.parametrize("text", ["", "INSTRUCTION =", "INSTRUCTION = DETAILED_PROMPT_WITH_SPECIAL_TOKEN = 1 + 1"])
def test_a_question_that_is_not_there_is_asked_for(name: str, text: str, copied: Callable[[str], Path]) -> None:
    folder = copied(name)
    file = folder / QUESTION[name]
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected the published question .* copy .*\.py of github.com/.* beside"):
        load_named(f"{name}:{folder}")
    file.unlink()
    with pytest.raises(ValueError, match=rf"Expected {QUESTION[name]} in the folder .*copy.*, then .*torch.*; copy"):
        load_named(f"{name}:{folder}")


def test_a_question_that_rates_before_it_names_the_prompt_is_refused(copied: Callable[[str], Path]) -> None:
    folder = copied("hpsv3")
    text = 'INSTRUCTION = "<|Reward|>"\nprompt_with_special_token = "{text_prompt}"'
    (folder / QUESTION["hpsv3"]).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Expected {text_prompt} and <\|Reward\|> in this order in .*data_collator"):
        load_named(f"hpsv3:{folder}")


@pytest.mark.parametrize("name", tiny_qwen.NAMES)
def test_the_base_model_may_be_elsewhere_and_is_asked_for(
    name: str, copied: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, other = copied(name), tmp_path / "other"
    other.mkdir()
    for file in (folder / "config.json", *folder.glob("token*")):
        shutil.move(file, other / file.name)
    with pytest.raises(ValueError, match=r"config.json in the folder .*, then .*Qwen/Qwen2-VL-.*Instruct, but"):
        load_named(f"{name}:{folder}")
    assert load_named(f"{name}:{folder}", base=other)(FRAMES, ["a"]).isfinite().all()
    (other / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    with pytest.raises(ValueError, match="Expected the config of a Qwen2VL model in .*config.json, but got none"):
        load_named(f"{name}:{folder}", base=other)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("videoreward", "model_config.json"),
        ("hpsv3", "HPSv3.safetensors"),
    ],
)
def test_an_absent_file_is_named_with_what_to_do(name: str, file: str, copied: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=rf"{file} in the local cache of .*; get it with `hf download .*{file}"):
        load_named(name)
    folder = copied(name)
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} in the folder .*, or pass its folder as {name}:FOLDER"):
        load_named(f"{name}:{folder}")


def test_a_checkpoint_that_is_not_in_the_cache_is_asked_for(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("videoreward")
    shutil.rmtree(folder / "checkpoint-11352")
    monkeypatch.setattr(Place, "file", lambda self, name: folder / name if (folder / name).is_file() else None)
    with pytest.raises(ValueError, match="model.pth in the local cache of KwaiVGI/VideoReward, but it is not there"):
        load_named("videoreward")


def test_without_statistics_scores_are_raw_and_have_no_unit(copied: Callable[[str], Path]) -> None:
    folder = copied("videoreward")
    with_them = load_named(f"videoreward:{folder}")
    file = folder / "model_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    statistics = settings.pop("inference_config")
    file.write_text(json.dumps(settings), encoding="utf-8")
    raw = load_named(f"videoreward:{folder}")
    assert (with_them.mean, with_them.std) == ((0.0,) * 3, (1.0,) * 3) and (raw.mean, raw.std) == (None, None)
    mean, std = (torch.tensor([statistics[f"{axis}_{kind}"] for axis in raw.axes]) for kind in ("mean", "std"))
    scores = [judge(FRAMES, ["a"], 8.0) for judge in (raw, with_them)]
    torch.testing.assert_close((scores[0] - mean) / std, scores[1])


def test_both_are_judges_of_files_by_name(folders: dict[str, Path]) -> None:
    name = f"hpsv3:{folders['hpsv3']}"
    assert load_judge(name)(FRAMES, ["a"], 8.0).shape == (1, 1)
    assert judge_identity(name).startswith("hpsv3 ") and judge_identity("videoreward") == "videoreward None"
