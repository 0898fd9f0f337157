"""The published VideoReward: a vision-language model that scores finished videos on VQ, MQ and TA.

Its folder is read as published: ``model_config.json`` and ``checkpoint-<step>/`` with ``model.pth``, or with
``adapter_model.safetensors`` and ``non_lora_state_dict.pth``. Two things are not in it: the base model that the config
names (its config and tokenizer; its weights too if the checkpoint holds adapters only), and the wording of the
question, ``prompt_template.py`` of the VideoAlign repository, which belongs beside ``model_config.json``. With another
wording the numbers would not be on the published scale.

References:
    [1] Liu et al., 2025, arXiv:2501.13918, section 3 (VideoReward).
    [2] github.com/KwaiVGI/VideoAlign, the published inference.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nrg_sampler.rewards.published import PublishedWeights, load_state, require_same_keys

AXES = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)
TEMPLATE = ("prompt_template.py", "DETAILED_PROMPT_WITH_SPECIAL_TOKEN")
PROMPT_PLACE = "{text_prompt}"
# Qwen2-VL's conversation with one video and one question.
CONVERSATION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|>{video}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
)
VIDEO_TOKEN = "<|video_pad|>"

FRAME_FACTOR = 2  # the vision tower reads frames in pairs
FEWEST_FRAMES, MOST_FRAMES = 4, 768
PATCH, MERGE = 14, 2  # pixels a patch, patches a token to each side
FEWEST_PIXELS = 128 * 28 * 28  # of a frame
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


class VideoReward:
    """Score finished videos as the published VideoReward does.

    Args:
        model: The vision-language model without its text head.
        head: Linear, from hidden states to rewards.
        tokenizer: With the three reward tokens added last, in the order VQ, MQ, TA.
        settings: The published ``model_config.json``.
        template: The question, with the reward tokens and a place for the prompt.
    """

    axes: tuple[str, ...] = AXES

    def __init__(
        self, model: Any, head: nn.Linear, tokenizer: Any, settings: Mapping[str, Any], template: str
    ) -> None:
        self.model, self.head, self.tokenizer, self.template = model, head, tokenizer, template
        self.data = settings["data_config"]
        self.statistics = settings.get("inference_config")
        self.reward_tokens = torch.tensor(tokenizer.convert_tokens_to_ids(list(TOKENS)))
        self.loaded_keys = 0

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        base: str | Path | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> VideoReward:
        """Load the published folder.

        Args:
            folder: With ``model_config.json``, ``prompt_template.py`` and ``checkpoint-<step>``.
            base: Folder or Hub id of the base model, Qwen2-VL-2B-Instruct; by default what the config names, looked
                for in ``folder`` first.
            device: Where to run.
            dtype: Of the weights; bfloat16 on an accelerator, else float32.

        Raises:
            ValueError: If a file is missing or damaged, a setting is not supported, or a key is missing or too many.
        """
        folder = Path(folder)
        settings = _settings(folder)
        template = _template(folder)
        checkpoint = _latest_checkpoint(folder)
        base = _base(folder, settings, base)
        tokenizer = _tokenizer(base)
        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        model, head, keys = _load(checkpoint, settings, base, len(tokenizer))
        model, head = model.to(device, dtype), head.to(device, dtype)
        reward = cls(model, head, tokenizer, settings, template)
        reward.loaded_keys = keys
        return reward

    @torch.no_grad()
    def __call__(self, clips: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Score clips, one after the other.

        Args:
            clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
            prompts: One for each clip.
            fps: Frames per second of the clips; the rate decides which frames are looked at.

        Returns:
            VQ, MQ and TA in published units, shape ``(B, 3)``.
        """
        return torch.stack([self._score(clip, prompt, fps) for clip, prompt in zip(clips, prompts, strict=True)])

    def frames_seen(self, total: int, fps: float) -> int:
        """Return how many of ``total`` frames at ``fps`` are looked at, evenly spread."""
        return len(sampled(total, fps, self.data))

    def _score(self, clip: Tensor, prompt: str, fps: float) -> Tensor:
        device, dtype = self.head.weight.device, self.head.weight.dtype
        frames = (clip.transpose(0, 1) * 255).round().to(torch.uint8)  # (T, 3, H, W)
        frames = resized(frames[sampled(len(frames), fps, self.data)], int(self.data["max_frame_pixels"]))
        patches, grid = patchified(frames)
        tokens = self._tokens(prompt, math.prod(grid) // MERGE**2).to(device)
        # The published model numbers its tokens one after the other, without Qwen2-VL's positions in space and time:
        # it calls the language model without any, which then counts.
        positions = torch.arange(tokens.shape[1], device=device).expand(3, 1, -1)
        hidden = self.model(
            input_ids=tokens,
            position_ids=positions,
            pixel_values_videos=patches.to(device, dtype),
            video_grid_thw=torch.tensor([grid], device=device),
            use_cache=False,
        ).last_hidden_state
        places = [int((tokens[0] == token).nonzero()) for token in self.reward_tokens.to(device)]
        rewards = self.head(hidden[0, places]).float().cpu()  # (3, 1), or (3, 3) with a head of its own for each
        raw = rewards.diagonal() if rewards.shape[1] == len(AXES) else rewards[:, 0]
        return self._normalised(raw)

    def _tokens(self, prompt: str, video_tokens: int) -> Tensor:
        if "<|" in prompt:
            raise ValueError(
                f"Expected a prompt without the tokenizer's marks '<|', but got {prompt!r}; leave them out."
            )
        question = self.template.replace(PROMPT_PLACE, prompt)
        text = CONVERSATION.replace("{question}", question).replace("{video}", VIDEO_TOKEN * video_tokens, 1)
        tokens: Tensor = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return tokens

    def _normalised(self, raw: Tensor) -> Tensor:
        if self.statistics is None:
            return raw
        mean, std = ([float(self.statistics[f"{axis}_{name}"]) for axis in AXES] for name in ("mean", "std"))
        return (raw - torch.tensor(mean)) / torch.tensor(std)


def sampled(total: int, fps: float, data: Mapping[str, Any]) -> list[int]:
    """Return which of ``total`` frames are looked at: an even number at the published rate, evenly spread.

    Args:
        total: Frames of the video.
        fps: Their rate.
        data: ``fps``, the wanted rate, or ``num_frames``.

    Raises:
        ValueError: If the video has fewer than two frames.
    """
    if total < FRAME_FACTOR:
        raise ValueError(f"Expected a video of {FRAME_FACTOR} frames or more, but got {total}.")
    if data.get("num_frames") is not None:
        count = round(data["num_frames"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        most = min(MOST_FRAMES, total) // FRAME_FACTOR * FRAME_FACTOR
        wanted = min(max(total / fps * float(data["fps"]), FEWEST_FRAMES), most)
        count = round(wanted / FRAME_FACTOR) * FRAME_FACTOR
    return [int(index) for index in torch.linspace(0, total - 1, min(count, total)).round()]


def resized(frames: Tensor, most_pixels: int) -> Tensor:
    """Resize uint8 frames ``(T, 3, H, W)`` to sides that are whole tokens, within the published limits."""
    height, width = frame_size(frames.shape[-2], frames.shape[-1], most_pixels)
    if (height, width) == frames.shape[-2:]:
        return frames
    larger = functional.interpolate(frames.float(), (height, width), mode="bicubic", antialias=True)
    return larger.clamp(0, 255).round().to(torch.uint8)


def frame_size(height: int, width: int, most_pixels: int) -> tuple[int, int]:
    """Return the nearest sides that are multiples of 28, with the aspect kept and the area within its limits."""
    unit = PATCH * MERGE
    sides = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if math.prod(sides) > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        sides = [max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width)]
    elif math.prod(sides) < FEWEST_PIXELS:
        grow = math.sqrt(FEWEST_PIXELS / (height * width))
        sides = [math.ceil(side * grow / unit) * unit for side in (height, width)]
    return sides[0], sides[1]


def patchified(frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Cut uint8 frames into the normalised patches of Qwen2-VL.

    Args:
        frames: Shape ``(T, 3, H, W)``, sides multiples of 28; the last frame is repeated if ``T`` is odd.

    Returns:
        Patches, shape ``(N, 3 * 2 * 14 * 14)``, and their grid in time, height and width.
    """
    if len(frames) % FRAME_FACTOR:
        frames = torch.cat([frames, frames[-1:]])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    pixels = (frames.float() / 255 - mean) / std
    grid = (len(frames) // FRAME_FACTOR, frames.shape[2] // PATCH, frames.shape[3] // PATCH)
    blocks = pixels.reshape(
        grid[0], FRAME_FACTOR, 3, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH
    )  # the patches of one token follow each other
    patches = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1)
    return patches, grid


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "model_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8-sig"))
        data, model = settings["data_config"], settings["model_config"]
        peculiar = {
            "sample_type": (data.get("sample_type", "uniform"), "uniform"),
            "prompt_template_type": (data["prompt_template_type"], "detailed_special"),
            "use_special_tokens": (model["use_special_tokens"], True),
        }
        needed = (data["max_frame_pixels"], model["output_dim"], settings["peft_lora_config"]["lora_enable"])
        assert needed and (data.get("num_frames") or data["fps"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"Expected the published VideoReward settings in {file}, but {type(error).__name__}: {error}; "
            "name the folder that holds model_config.json and checkpoint-<step>."
        ) from error
    for name, (got, supported) in peculiar.items():
        if got != supported:
            raise ValueError(f"Expected {name} {supported!r} in {file}, as published, but got {got!r}.")
    return dict(settings)


def _template(folder: Path) -> str:
    file, name = folder / TEMPLATE[0], TEMPLATE[1]
    try:
        body = ast.parse(file.read_text(encoding="utf-8-sig")).body
        found = [
            ast.literal_eval(line.value)
            for line in body
            if isinstance(line, ast.Assign) and any(getattr(target, "id", "") == name for target in line.targets)
        ]
    except (OSError, SyntaxError, ValueError):
        found = []
    if not found:
        raise ValueError(
            f"Expected the published question {name} in {file}, but found none; copy prompt_template.py of the "
            "VideoAlign repository (github.com/KwaiVGI/VideoAlign) beside model_config.json."
        )
    template = str(found[-1])
    places = [template.find(part) for part in (TOKENS[0], TOKENS[1], PROMPT_PLACE, TOKENS[2])]
    if -1 in places or places != sorted(places):
        raise ValueError(
            f"Expected {TOKENS[0]}, {TOKENS[1]}, {PROMPT_PLACE} and {TOKENS[2]} in this order in {file}, but it "
            "differs; quality and motion have to come before the prompt."
        )
    return template


def _latest_checkpoint(folder: Path) -> Path:
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*[0-9]")}
    if not steps:
        raise ValueError(f"Expected a folder checkpoint-<step> in {folder}, but found none; download it again.")
    return steps[max(steps)]


def _base(folder: Path, settings: Mapping[str, Any], base: str | Path | None) -> str:
    if base is not None:
        return str(base)
    named = str(settings["model_config"]["model_name_or_path"])
    return str(folder / named) if (folder / named).is_dir() else named


def _tokenizer(base: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected the base model of VideoReward in {base!r}, but its tokenizer cannot be loaded; "
            "download Qwen2-VL-2B-Instruct and name its folder."
        ) from error
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    return tokenizer


def _load(checkpoint: Path, settings: Mapping[str, Any], base: str, vocabulary: int) -> tuple[Any, nn.Linear, int]:
    """Return the model, its head and how many keys of the checkpoint were read."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, Qwen2VLModel

    config = AutoConfig.from_pretrained(base)
    config.text_config.vocab_size = vocabulary  # as published: shrunk to the tokenizer with its new tokens
    with init_empty_weights(include_buffers=False):
        whole = nn.Module()
        whole.model = Qwen2VLModel(config)
        whole.rm_head = nn.Linear(config.text_config.hidden_size, settings["model_config"]["output_dim"], bias=False)
    full = checkpoint / "model.pth"
    untuned: dict[str, Tensor] = {}
    if full.exists():
        published = PublishedWeights.of(load_state(full))
    else:
        parts = (checkpoint / "adapter_model.safetensors", checkpoint / "non_lora_state_dict.pth")
        published = PublishedWeights.of({key: value for part in parts for key, value in load_state(part).items()})
        tower = Qwen2VLModel.from_pretrained(base, dtype=torch.float32)
        untuned = {f"model.{name}": value for name, value in tower.state_dict().items()}
        untuned.pop("model.language_model.embed_tokens.weight")  # it has no row for the reward tokens
    weights = published.merged(_scaling(settings["peft_lora_config"]), untuned)
    require_same_keys(weights, whole.state_dict(), checkpoint)
    whole.load_state_dict(weights, assign=True)
    whole.requires_grad_(False).eval()
    return whole.model, whole.rm_head, published.keys


def _scaling(lora: Mapping[str, Any]) -> float:
    if not lora["lora_enable"]:
        return 0.0
    rank = float(lora["lora_r"])
    return float(lora["lora_alpha"]) / (math.sqrt(rank) if lora.get("use_rslora") else rank)
