r"""The published DiNa-LRM: a reward on noisy Stable Diffusion 3.5 latents, to guide that pipeline with.

The trunk is the first blocks of the pipeline's own transformer with adapters merged in; features of several of them
are modulated by the noise level, joined, and read by a few learned queries. A folder as published holds

.. code-block:: text

    config.json                     the section ``model`` says which blocks are read and how
    checkpoint/backbone_lora/       adapter_config.json and adapter_model.safetensors, as PEFT writes them
    checkpoint/rm_head.pt           the head

or, where the trunk was trained without adapters, ``checkpoint/full_model.pt``.

References:
    [1] DiNa-LRM, arXiv:2602.11146.
    [2] github.com/HKUST-C4G/diffusion-rm, the published layout and inference.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.dina_head import DiNaHead
from nrg_sampler.rewards.published import PublishedWeights, load_state, require_same_keys
from nrg_sampler.rewards.recompute import recomputed

TIMESTEPS = 1000  # a timestep is this times sigma
PUBLISHED_MEAN, PUBLISHED_STD = -10.0, 10.0  # the authors report (score + 10) / 10
TRUNK = ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks")


class DiNaReward(nn.Module):
    """Score noisy latents of a picture as the published DiNa-LRM does.

    Args:
        trunk: The first blocks of an ``SD3Transformer2DModel``, a module with those and its embeddings.
        head: Reads them.
        picture_blocks: After which blocks the picture is read, 1 is the first; 0 reads what enters it.
        text_blocks: Likewise the text.
        expected: ``in_channels`` and ``joint_attention_dim`` of the transformer.
        recommended_scale: The default guidance strength.
    """

    axes: tuple[str, ...] = ("preference",)
    mean, std = (PUBLISHED_MEAN,), (PUBLISHED_STD,)

    def __init__(
        self,
        trunk: Any,
        head: DiNaHead,
        picture_blocks: Sequence[int],
        text_blocks: Sequence[int],
        expected: Mapping[str, int],
        recommended_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone, self.reward_head = trunk, head
        self.picture_blocks, self.text_blocks = tuple(picture_blocks), tuple(text_blocks)
        self._expected = dict(expected)
        self.recommended_scale = recommended_scale
        self.loaded_keys = 0
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, base: Any = None, dtype: torch.dtype | None = None, device: str = "cpu"
    ) -> DiNaReward:
        """Load the published folder.

        Args:
            folder: With ``config.json`` and ``checkpoint``.
            base: The transformer of a pipeline, whose blocks are copied, or the folder or Hub id of one; by default
                what the config names.
            dtype: Of the weights; that of the base by default.
            device: Where to run.

        Raises:
            ValueError: If a file is missing or damaged, a setting is not supported, or a key is missing or too many.
        """
        folder = Path(folder)
        settings = _settings(folder)
        transformer = _transformer(settings["backbone_model_id"] if base is None else base, dtype)
        blocks = int(settings["num_transformer_layers"])
        if not 1 <= blocks <= len(transformer.transformer_blocks):
            raise ValueError(
                f"Expected a transformer of {blocks} blocks or more, which this reward was trained on, but got "
                f"{len(transformer.transformer_blocks)}; name Stable Diffusion 3.5 Medium as the base."
            )
        trunk = _first_blocks(transformer, blocks)
        pictures, texts = settings["visual_head_idx"], settings["text_head_idx"]
        head = DiNaHead(transformer.inner_dim, len(pictures), len(texts), settings.get("reward_head") or {})
        expected = {name: transformer.config[name] for name in ("in_channels", "joint_attention_dim")}
        reward = cls(trunk, head, pictures, texts, expected)
        reward.loaded_keys = _load(reward, folder / "checkpoint", settings)
        weight = transformer.pos_embed.proj.weight
        return reward.to(device, dtype or weight.dtype).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where it computes; diffusers queries every component of a pipeline."""
        return self.reward_head.query_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.reward_head.query_tokens.dtype

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline with other latents or text features.

        Raises:
            ValueError: If the transformer is of another kind or size.
        """
        transformer = getattr(pipe, "transformer", None)
        config = getattr(transformer, "config", {})
        if type(transformer).__name__ != "SD3Transformer2DModel":
            raise ValueError(
                f"Expected a Stable Diffusion 3 pipeline, as this reward was trained on, but {type(pipe).__name__} "
                f"has {type(transformer).__name__}; use a reward that was trained for this pipeline's latents."
            )
        for name, value in self._expected.items():
            if config[name] != value:
                raise ValueError(
                    f"Expected a transformer with `{name}` {value}, as this reward was trained on, but that of "
                    f"{type(pipe).__name__} has {config[name]}; use a reward that was trained for it."
                )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Score latents.

        Args:
            latents: Noisy latents of a picture, shape ``(B, C, 1, H, W)``.
            sigma: Noise level in ``[0, 1]``, shape ``(B,)``; the authors score finished pictures at 0.1 to 0.4.
            conditioning: ``prompt_embeds`` ``(B, L, D)`` and ``pooled`` ``(B, P)`` of the positive prompt.

        Returns:
            Raw reward, float32, shape ``(B, 1)``; the authors' figure is ``(raw + 10) / 10``.

        Raises:
            ValueError: If the latents are those of a video or the prompt is missing.
        """
        embeds, pooled = conditioning.prompt_embeds, conditioning.pooled
        if latents.ndim != 5 or latents.shape[2] != 1:
            raise ValueError(f"Expected latents of one picture, (B, C, 1, H, W), but got {tuple(latents.shape)}.")
        if embeds is None or pooled is None:
            raise ValueError(
                "Expected `prompt_embeds` and `pooled` in the conditioning of a DiNa reward, but got "
                f"{'no prompt' if embeds is None else 'no pooled prompt'}; guide with `attach`, or pass both."
            )
        dtype, trunk = self.dtype, self.backbone
        picture = trunk.pos_embed(latents[:, :, 0].to(dtype)).contiguous()  # (B, N, D)
        time = trunk.time_text_embed(TIMESTEPS * sigma.to(latents.device), pooled.to(dtype))  # (B, D)
        text = trunk.context_embedder(embeds.to(dtype))  # (B, L, D)
        pictures, texts = {0: picture}, {0: text}
        for index, block in enumerate(trunk.transformer_blocks, start=1):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                text, picture = recomputed(block, picture, text, time)
            else:
                text, picture = block(picture, text, time)
            pictures[index], texts[index] = picture, text
        score: Tensor = self.reward_head(
            [pictures[index] for index in self.picture_blocks], [texts[index] for index in self.text_blocks], time
        )
        return score.float()


def _settings(folder: Path) -> dict[str, Any]:
    """The section ``model`` of the config, which is JSON or YAML."""
    import yaml

    file = folder / "config.json"
    try:
        settings = dict(yaml.safe_load(file.read_text(encoding="utf-8-sig"))["model"])
        for name in ("backbone_model_id", "num_transformer_layers", "visual_head_idx", "text_head_idx", "use_lora"):
            settings[name]
        settings["freeze_backbone"] = settings.get("freeze_backbone", False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected the published DiNa-LRM settings in {file}, but {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; name the folder that holds config.json and checkpoint."
        ) from error
    if settings.get("use_logistic"):
        raise ValueError(f"Expected use_logistic false in {file}, as published, but got true, which is not supported.")
    return settings


def _transformer(base: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(base, nn.Module):
        if type(base).__name__ != "SD3Transformer2DModel":
            raise ValueError(
                f"Expected an SD3Transformer2DModel as the base, but got {type(base).__name__}; "
                "pass the transformer of a Stable Diffusion 3.5 pipeline."
            )
        return base
    from diffusers import SD3Transformer2DModel

    try:
        return SD3Transformer2DModel.from_pretrained(base, subfolder="transformer", dtype=dtype)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected the base model of DiNa-LRM in {str(base)!r}, but its transformer cannot be loaded; download "
            "Stable Diffusion 3.5 Medium, or pass the transformer of a pipeline as `base`."
        ) from error


def _first_blocks(transformer: Any, blocks: int) -> Any:
    """A copy of the embeddings and the first blocks, so that adapters leave the pipeline's own weights alone."""
    trunk = nn.Module()
    for name in TRUNK:
        part = getattr(transformer, name)
        setattr(trunk, name, copy.deepcopy(part[:blocks] if name == "transformer_blocks" else part))
    return trunk


def _load(reward: DiNaReward, checkpoint: Path, settings: Mapping[str, Any]) -> int:
    """Fill in the weights; returns how many keys of the checkpoint were read."""
    trunk, head = reward.backbone, reward.reward_head
    if not settings["use_lora"] and not settings["freeze_backbone"]:
        state = load_state(checkpoint / "full_model.pt")
        require_same_keys(state, reward.state_dict(), checkpoint)
        reward.load_state_dict(state)
        return len(state)
    state = load_state(checkpoint / "rm_head.pt")
    require_same_keys(state, head.state_dict(), checkpoint / "rm_head.pt")
    head.load_state_dict(state)
    if not settings["use_lora"]:
        return len(state)
    adapters = _adapters(trunk, checkpoint / "backbone_lora")
    return len(state) + adapters


def _adapters(trunk: Any, folder: Path) -> int:
    """Merge adapters into the trunk; returns how many keys there were."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8-sig"))
        rank, alpha, targets = float(config["r"]), float(config["lora_alpha"]), config["target_modules"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"Expected adapter_config.json in {folder}, but {type(error).__name__}: {error}; download it again."
        ) from error
    published = PublishedWeights.of(load_state(folder / "adapter_model.safetensors"))
    own = trunk.state_dict()
    wanted = [
        f"{name}.weight"
        for name, part in trunk.named_modules()
        if isinstance(part, nn.Linear)
        and _matches(name, targets)
        and not _matches(name, config.get("exclude_modules") or ())
    ]
    found = {name: own[name] if name in own else torch.empty(0) for name in published.adapters}
    require_same_keys({**found, **published.weights}, {name: own[name] for name in wanted}, folder)
    scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    trunk.load_state_dict(published.merged(scaling, own))
    return published.keys


def _matches(name: str, targets: Sequence[str]) -> bool:
    """Whether PEFT would take a module for one of these, by its whole name or its end."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
