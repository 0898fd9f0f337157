"""Tiny random Qwen2-VL with the heads of VideoReward and HPSv3, in the layouts in which these are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_named import shaken
from tiny_videoreward import TEMPLATE, settings, write_base
from torch import nn

from nrg_sampler.rewards.named import hpsv3, videoreward

NAMES = ("videoreward", "hpsv3")
# The file of the question, as far as it matters; it cannot be run.
COLLATOR = '''import nowhere_to_be_found

INSTRUCTION = """
rate a {text_prompt} by its quality

"""
INSTRUCTION_debug = "prompt"

prompt_with_special_token = """
quality <|Reward|>

a
"""
'''
QUESTIONS = {
    "videoreward": TEMPLATE,
    "hpsv3": "\nrate a {text_prompt} by its quality\n\n\nquality <|Reward|>\n\na\n",
}


def build(name: str, folder: Path) -> Any:
    """Write the base model, and return it with the head and the vocabulary of a reward."""
    model, vocabulary = write_base(folder)
    own = len(videoreward.TOKENS) if name == "videoreward" else len(hpsv3.TOKENS)
    model.resize_token_embeddings(vocabulary - len(videoreward.TOKENS) + own, mean_resizing=False)
    model.rm_head = nn.Linear(32, 1, bias=False) if name == "videoreward" else hpsv3.new_head(32)
    return shaken(model)


def old_name(key: str) -> str:
    """The name a weight has in the published files, that of transformers before 4.52."""
    return key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def write(name: str, folder: Path) -> Path:
    """Write a reward as it is published, with the config and tokenizer of its base and its question beside."""
    model = build(name, folder)
    (folder / "model.safetensors").unlink()  # of the base model, which scoring does without
    state = {old_name(key): value.clone() for key, value in model.state_dict().items()}
    if name == "hpsv3":
        save_file(state, folder / "HPSv3.safetensors")
        (folder / "data_collator_qwen.py").write_text(COLLATOR, encoding="utf-8")
        return folder
    (folder / "checkpoint-11352").mkdir()
    torch.save(state, folder / "checkpoint-11352" / "model.pth")
    (folder / "model_config.json").write_text(json.dumps(settings()), encoding="utf-8")
    text = f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {TEMPLATE!r}\n"
    (folder / "prompt_template.py").write_text(text, encoding="utf-8")
    return folder
