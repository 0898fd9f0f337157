"""The latent process reward model of Euphonium: a reward on the noisy latents of HunyuanVideo.

The trunk is the first blocks of HunyuanVideo's transformer; a head reads the tokens of the video after the last of
them. No VAE is needed, and the prompt reaches it as the features that the pipeline made.

What it is called with is public [1]: latents in the pipeline's scaled space, the timestep as a whole number, the
features of the language model with their mask and CLIP's pooled vector; it gives one logit. The code of the model
itself was not at hand, nor its weights, so that its head is taken as its keys tell.

References:
    [1] github.com/zerzerzerz/Euphonium.
    [2] Zhong et al., 2026, arXiv:2602.04928.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.checkpoints import first_few
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.hunyuan_trunk import FIRST, load_trunk, split
from nrg_sampler.rewards.latent_prm_head import load_head
from nrg_sampler.rewards.named.latent_table import LATENT_PRM
from nrg_sampler.rewards.published import load_state, require_same_keys
from nrg_sampler.rewards.recompute import recomputed

HOST = "HunyuanVideoTransformer3DModel"
TIMESTEPS = 1000  # a timestep is the whole part of this times sigma
GUIDANCE = 6000.0  # for a trunk that is told a guidance scale: a thousand times the pipeline's default
ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
OF_TRAINING = ("optimizer", "scheduler", "rng_state", "random_states", "training_args", "scaler")
WRAPPERS = ("module.", "_orig_mod.")  # of torch, around a model that is trained


class LatentPRM(nn.Module):
    """Score noisy HunyuanVideo latents as the latent process reward model does.

    Args:
        trunk: The first blocks of a ``HunyuanVideoTransformer3DModel``.
        head: Maps the video's tokens ``(B, N, D)`` after them to ``(B, 1)``.
        guidance: What a trunk with an embedding of the guidance scale is given for it.
        recommended_scale: The default guidance strength.
    """

    axes: tuple[str, ...] = ("MQ",)
    source: str | None = None  # the name that it was made from

    def __init__(
        self, trunk: Any, head: nn.Module, guidance: float = GUIDANCE, recommended_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.backbone, self.reward_head = trunk, head
        self.guidance, self.recommended_scale = guidance, recommended_scale
        self.loaded_keys: tuple[int, int] = (0, 0)
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        head: nn.Module | None = None,
    ) -> LatentPRM:
        """Load a folder.

        Args:
            folder: With the weights, in one file or several. A ``config.json`` may state what they do not tell:
                ``activation`` and ``attention_heads`` of the head, ``rope_axes_dim`` and ``rope_theta`` of the
                transformer, and the ``guidance`` it is given.
            dtype: Of the weights; as they are saved by default.
            device: Where to run.
            head: Reads the video's tokens, where the published head is of another kind than those known here. Its
                weights are taken from the checkpoint, by the same names.

        Returns:
            Frozen and in evaluation mode. ``loaded_keys`` has the number of weights that are used, and of those of an
            output layer that are not.

        Raises:
            ValueError: If a file is missing or damaged, or a key is missing or too many.
        """
        folder = Path(folder)
        settings = _settings(folder / "config.json")
        state = _weights(folder)
        trunk_state, others, unused = split(state, folder)
        trunk = load_trunk(trunk_state, settings, folder)
        if head is None:
            head = load_head(others, len(trunk_state[FIRST]), settings, folder)
        else:
            require_same_keys(others, head.state_dict(), folder)
            head.load_state_dict(others, assign=True)
        reward = cls(trunk, head, float(settings.get("guidance") or GUIDANCE))
        reward.loaded_keys = (len(trunk_state) + len(others), len(unused))
        return reward.to(device, dtype or trunk_state[FIRST].dtype).requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where it computes; diffusers queries every component of a pipeline."""
        return self.backbone.x_embedder.proj.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.backbone.x_embedder.proj.weight.dtype  # type: ignore[no-any-return]

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks with two streams, and with one, were in the checkpoint."""
        return len(self.backbone.transformer_blocks), len(self.backbone.single_transformer_blocks)

    def enable_gradient_checkpointing(self) -> None:
        """Let the gradient need less memory and more time; as rewards of this package have it."""
        self.gradient_checkpointing = True

    def train(self, mode: bool = True) -> LatentPRM:
        """Stay in evaluation mode, whatever holds the reward is switched to."""
        super().train(False)
        return self

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline with other latents or text features.

        Raises:
            ValueError: If the transformer is of another kind or size.
        """
        require_host(pipe)
        config, own = pipe.transformer.config, self.backbone.config
        for name in ("in_channels", "text_embed_dim", "pooled_projection_dim"):
            if config[name] != own[name]:
                raise ValueError(
                    f"Expected a transformer with `{name}` {own[name]}, as this reward was trained on, but that of "
                    f"{type(pipe).__name__} has {config[name]}; use a reward that was trained for it."
                )

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Score latents.

        Args:
            latents: Noisy latents of a video as the pipeline has them, scaled, shape ``(B, C, T, H, W)``.
            sigma: Noise level in ``[0, 1]``, shape ``(B,)``.
            conditioning: ``prompt_embeds`` ``(B, L, D)`` with their mask and ``pooled`` ``(B, P)`` of the positive
                prompt.

        Returns:
            One logit, float32 at least, shape ``(B, 1)``.

        Raises:
            ValueError: If the prompt is missing, or the latents cannot be cut into patches.
        """
        embeds, pooled, mask = conditioning.prompt_embeds, conditioning.pooled, conditioning.prompt_mask
        if embeds is None or pooled is None:
            raise ValueError(
                "Expected `prompt_embeds` and `pooled` in the conditioning of a latent PRM, but got "
                f"{'no prompt' if embeds is None else 'no pooled prompt'}; guide with `attach`, or pass both."
            )
        dtype, trunk = self.dtype, self.backbone
        side, frames = trunk.config.patch_size, trunk.config.patch_size_t
        if latents.ndim != 5 or latents.shape[2] % frames or latents.shape[3] % side or latents.shape[4] % side:
            raise ValueError(
                f"Expected latents (B, C, T, H, W) in whole patches of {frames} x {side} x {side}, but got "
                f"{tuple(latents.shape)}; sample a size that the pipeline takes."
            )
        timestep = (TIMESTEPS * sigma.to(latents.device)).long()
        mask = torch.ones_like(embeds[..., 0], dtype=torch.long) if mask is None else mask.long()
        guidance = latents.new_full((len(latents),), self.guidance, dtype=dtype)
        rotary = trunk.rope(latents)
        time, _ = trunk.time_text_embed(timestep, pooled.to(dtype), guidance)
        video = trunk.x_embedder(latents.to(dtype))  # (B, N, D)
        text = trunk.context_embedder(embeds.to(dtype), timestep, mask)  # (B, L, D)
        places = torch.arange(video.shape[1] + text.shape[1], device=latents.device)
        seen = places < video.shape[1] + mask.sum(dim=1, keepdim=True)  # the video, and the text before its padding
        for block in (*trunk.transformer_blocks, *trunk.single_transformer_blocks):
            arguments = video, text, time, seen[:, None, None], rotary
            if self.gradient_checkpointing and torch.is_grad_enabled():
                video, text = recomputed(block, *arguments)
            else:
                video, text = block(*arguments)
        score: Tensor = self.reward_head(video)
        return score.to(torch.promote_types(score.dtype, torch.float32))


def require_host(pipe: Any) -> None:
    """Refuse a pipeline of another family than HunyuanVideo, before anything is loaded.

    Raises:
        ValueError: If its transformer is of another kind.
    """
    transformer = getattr(pipe, "transformer", None)
    if type(transformer).__name__ != HOST:
        raise ValueError(
            f"Expected a HunyuanVideo pipeline, as latent-prm was trained on, but {type(pipe).__name__} has "
            f"{'no transformer' if transformer is None else type(transformer).__name__}; use a reward that was "
            "trained for this pipeline's latents, or one on pixels such as 'pickscore'."
        )


def published_folder(download: bool = False) -> Path:
    """Return the folder of the published weights in the local cache of the Hub.

    Args:
        download: Whether the Hub may be asked for what is not there.

    Raises:
        ValueError: If it is not there.
    """
    from huggingface_hub import snapshot_download

    source, part = LATENT_PRM.source, LATENT_PRM.folder
    folder: Path | None
    try:
        folder = Path(snapshot_download(source, allow_patterns=f"{part}/*", local_files_only=not download), part)
    except (OSError, ValueError):  # absent, no network
        folder = None
    if folder is None or not folder.is_dir():
        raise ValueError(
            f"Expected the folder {part} in {'' if download else 'the local cache of '}{source}, but it is not there; "
            f"get it with `hf download {source} --include '{part}/*'`, or pass its folder as latent-prm:FOLDER."
        )
    return folder


def _settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"Expected settings in {file}, but it cannot be read ({type(error).__name__}: {error}); copy it again."
        ) from error


def _weights(folder: Path) -> dict[str, Tensor]:
    """Read all files of weights in a folder, those in safetensors where there are any."""
    files = sorted(
        file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.suffix in ENDINGS and not file.name.startswith(OF_TRAINING)
    )
    files = [file for file in files if file.suffix == ENDINGS[0]] or files
    if not files:
        inside = sorted({file.parent.name for file in folder.glob("*/*") if file.suffix in ENDINGS})
        advice = f"name its folder {inside[0]}" if inside else "download it again"
        raise ValueError(f"Expected the weights of a latent PRM in {folder}, but found none; {advice}.")
    state: dict[str, Tensor] = {}
    for file in files:
        found: Mapping[str, Any] = load_state(file)
        for wrapper in ("state_dict", "model", "module"):
            if isinstance(found.get(wrapper), Mapping):
                found = found[wrapper]
        named = {_unwrapped(key): value for key, value in found.items()}
        if twice := [key for key in named if key in state]:
            raise ValueError(
                f"Expected each weight once in {folder}, but {file.name} has {first_few(twice)} again; keep one file "
                "of each."
            )
        if other := [key for key, value in named.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"Expected weights alone in {file}, but it has {first_few(other)} too; save those apart.")
        state |= named
    return state


def _unwrapped(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.removeprefix(wrapper)
    return key
