"""VideoReward: Qwen2-VL-2B with a head that is read at three tokens, for visual quality, motion and alignment.

A folder is read as published: ``model_config.json`` and ``checkpoint-<step>/`` with ``model.pth``, or with
``adapter_model.safetensors`` and ``non_lora_state_dict.pth``. Two things are not in it: the base model that the config
names (its config and tokenizer; its weights too if the checkpoint holds adapters only), and the wording of the
question, ``prompt_template.py`` of the VideoAlign repository. With another wording the numbers would not be on the
published scale.

References:
    [1] Liu et al., 2025, arXiv:2501.13918, section 3 (VideoReward).
    [2] github.com/KwaiVGI/VideoAlign, the published inference.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.named.judge import check_frames, require_one_each
from nrg_sampler.rewards.named.qwen import PROMPT_PLACE, VIDEO, QwenJudge
from nrg_sampler.rewards.named.qwen_frames import FEWEST_FRAMES, patchified, resized, sampled
from nrg_sampler.rewards.named.table import Entry
from nrg_sampler.rewards.published import PublishedWeights, load_state

AXES = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{axis}_reward|>" for axis in AXES)
QUESTION = ("DETAILED_PROMPT_WITH_SPECIAL_TOKEN",)
PARTS = (TOKENS[0], TOKENS[1], PROMPT_PLACE, TOKENS[2])  # of the question, in their order
SETTINGS = "model_config.json"
ASSUMED_RATE = 16.0  # Wan's, where nobody states one


class VideoRewardJudge(QwenJudge):
    """Score clips as the published VideoReward does.

    Args:
        entry: Its row of the table.
        model: A ``Qwen2VLModel``.
        head: Linear, from hidden states to one reward, or to one for each token.
        tokenizer: With the three reward tokens added last, in the order VQ, MQ, TA.
        settings: The published ``model_config.json``.
        question: The wording.
        loaded_keys: How many keys of the checkpoint were read.
        checkpointing: Keep no activations of the blocks, and compute each again in the backward pass.
    """

    tokens, media = TOKENS, VIDEO

    def __init__(
        self,
        entry: Entry,
        model: Any,
        head: nn.Linear,
        tokenizer: Any,
        settings: Mapping[str, Any],
        question: str,
        loaded_keys: int = 0,
        checkpointing: bool = True,
    ) -> None:
        super().__init__(entry, model, head, tokenizer, question, checkpointing)
        self.data, self.statistics = settings["data_config"], settings.get("inference_config")
        if self.statistics is None:  # its scores are not in standard units then
            self.mean = self.std = None
        self.loaded_keys = loaded_keys
        self._rate_said = False

    def forward(self, frames: Tensor, prompts: Sequence[str], fps: float | None = None) -> Tensor:
        """Score clips, one after the other.

        Args:
            frames: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``; the gradient reaches those that are looked at. A single
                frame is a video that stands still.
            prompts: One for each clip.
            fps: Frames per second of the clips, which decide on the frames that are looked at; 16 where they are not
                known, with a warning once.

        Returns:
            VQ, MQ and TA in published units, shape ``(B, 3)``.

        Raises:
            ValueError: If ``frames`` are none, or the prompts are not one for each clip.
        """
        check_frames(frames)
        require_one_each(prompts, frames)
        clips = frames.to(self.device).transpose(1, 2) * 255
        return torch.stack([self.score(clip, prompt, fps) for clip, prompt in zip(clips, prompts, strict=True)])

    def score(self, levels: Tensor, prompt: str, fps: float | None = None) -> Tensor:
        """Score one clip.

        Args:
            levels: From 0 to 255, shape ``(T, 3, H, W)``; uint8 is rounded as the published code does it with files.
            prompt: Its prompt.
            fps: As in :meth:`forward`.

        Returns:
            Shape ``(3,)``, float32 at least.
        """
        levels = levels[self.looked_at(len(levels), fps)].to(self.device)
        patches, grid = patchified(resized(levels, int(self.data["max_frame_pixels"])))
        rewards = self.head(self.read(patches, grid, prompt))
        rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))  # (3, 1), or (3, 3)
        return self._normalised(rewards.diagonal() if rewards.shape[1] == len(AXES) else rewards[:, 0])

    def looked_at(self, total: int, fps: float | None) -> list[int]:
        """Return which of ``total`` frames at ``fps`` are looked at."""
        if total == 1:
            return [0]
        matters = total > FEWEST_FRAMES and self.data.get("num_frames") is None
        if fps is None and matters and not self._rate_said:
            self._rate_said = True
            warnings.warn(
                f"{self.entry.name} looks at {self.data['fps']:g} frames a second, but the rate of the clip is not "
                f"known, and {ASSUMED_RATE:g} is assumed; pass `attach(..., fps=...)`.",
                stacklevel=2,
            )
        return sampled(total, ASSUMED_RATE if fps is None else fps, self.data)

    def _normalised(self, raw: Tensor) -> Tensor:
        if self.statistics is None:
            return raw
        mean, std = ([float(self.statistics[f"{axis}_{name}"]) for axis in AXES] for name in ("mean", "std"))
        return (raw - raw.new_tensor(mean)) / raw.new_tensor(std)


def read_settings(file: Path) -> dict[str, Any]:
    """Read the published ``model_config.json``.

    Raises:
        ValueError: If it is none, or a setting is not supported.
    """
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


def latest_checkpoint(folder: Path) -> Path:
    """Return the folder of the latest step.

    Raises:
        ValueError: If there is none.
    """
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*[0-9]")}
    if not steps:
        raise ValueError(f"Expected a folder checkpoint-<step> in {folder}, but found none; download it again.")
    return steps[max(steps)]


def checkpoint_weights(
    checkpoint: Path, settings: Mapping[str, Any], base: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], int]:
    """Return the weights of a checkpoint with its adapters merged, and how many keys it has.

    Args:
        checkpoint: Its folder.
        settings: The published ``model_config.json``.
        base: Returns the weights of the untuned ``Qwen2VLModel``, for a checkpoint of adapters only.

    Raises:
        ValueError: If a file is missing or damaged, or an adapter is half there.
    """
    full = checkpoint / "model.pth"
    untuned: dict[str, Tensor] = {}
    if full.exists():
        published = PublishedWeights.of(load_state(full))
    else:
        parts = (checkpoint / "adapter_model.safetensors", checkpoint / "non_lora_state_dict.pth")
        published = PublishedWeights.of({key: value for part in parts for key, value in load_state(part).items()})
        untuned = {f"model.{name}": value for name, value in base().items()}
        untuned.pop("model.language_model.embed_tokens.weight")  # it has no row for the reward tokens
    return published.merged(_scaling(settings["peft_lora_config"]), untuned), published.keys


def _scaling(lora: Mapping[str, Any]) -> float:
    if not lora["lora_enable"]:
        return 0.0
    rank = float(lora["lora_r"])
    return float(lora["lora_alpha"]) / (math.sqrt(rank) if lora.get("use_rslora") else rank)
