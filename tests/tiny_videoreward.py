"""A tiny random Qwen2-VL with a reward head, in the published layouts of VideoReward."""

from __future__ import annotations

import torch

from nrg_sampler.rewards.named.videoreward import TOKENS

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "<|image_pad|>")
WORDS = ("system", "user", "assistant", "quality", "motion", "prompt", "a", "red", "blue", "circle")
TEMPLATE = "quality <|VQ_reward|>\nmotion <|MQ_reward|>\nprompt {text_prompt} <|TA_reward|>\n"
STATISTICS = {"VQ_mean": 3.0, "VQ_std": 2.0, "MQ_mean": 1.0, "MQ_std": 0.5, "TA_mean": -1.0, "TA_std": 4.0}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False}


def settings(output_dim=1, **data):
    return {
        "data_config": {
            "max_frame_pixels": 200704, "fps": 2.0, "num_frames": None, "sample_type": "uniform",
            "prompt_template_type": "detailed_special", **data,
        },
        "model_config": {"model_name_or_path": "./base", "use_special_tokens": True, "output_dim": output_dim},
        "peft_lora_config": LORA,
        "inference_config": STATISTICS,
    }  # fmt: skip


def write_base(folder):
    """A tokenizer and a random Qwen2-VL, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vocabulary = {word: index for index, word in enumerate(("<pad>", "<unk>", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>")
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    tokenizer.save_pretrained(folder)
    text = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for name, mark in (
        ("video_token_id", "video_pad"), ("image_token_id", "image_pad"),
        ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **ids))
    model.save_pretrained(folder)
    return model, len(tokenizer) + len(TOKENS)


def old_name(key):
    """The name a weight had before transformers 4.52."""
    key = key.replace("base_model.model.model.language_model.", "base_model.model.model.")
    return key.replace("base_model.model.model.visual.", "base_model.model.visual.")
