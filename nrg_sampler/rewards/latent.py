"""The noise-aware latent reward: the first blocks of a video transformer, read by one learned query per axis."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from nrg_sampler.files import replacing, writing
from nrg_sampler.rewards.base import Conditioning
from nrg_sampler.rewards.card import model_card
from nrg_sampler.rewards.configured import RecommendingModel
from nrg_sampler.rewards.gate import WeightGate, pool_prompts, shares
from nrg_sampler.rewards.latent_space import check_latent_space
from nrg_sampler.rewards.reads import (
    POOLINGS,
    EncodedPrompt,
    Member,
    QueryRead,
    member_rewards,
    new_heads,
    new_queries,
    new_reads,
)
from nrg_sampler.rewards.recompute import recomputed
from nrg_sampler.rewards.trunk import TRUNK_OPTIONS, NoiseBeside, WanTrunk


class LatentReward(WanTrunk, RecommendingModel):
    r"""Score noisy latents on named axes, without decoding them.

    The trunk is the first ``num_blocks`` blocks of the video model's own transformer, run without the prompt. One
    learned query per axis reads its features; the axes in ``text_axes`` read the prompt first, the others are blind to
    it by construction. The outputs are logits, trained on preference pairs under the same noise at every
    :math:`\sigma`; their gradient is the guidance.

    Args:
        axes: Names of the axes, in output order.
        text_axes: Those that may see the prompt.
        num_blocks: Transformer blocks in the trunk.
        num_reads: Rounds of reading.
        num_token_reads: Rounds in which each word of the prompt attends to the features on its own, before the axes in
            ``text_axes`` attend to the words: they judge a prompt word by word, which tells clips of one prompt apart.
        null_tokens: Learned tokens that stand where the prompt would be in the trunk.
        prompt_in_trunk: Let the trunk read the prompt as the video model does. No axis is blind to it then, but the
            features are the video model's own, which ``RewardGuidance(forward="shared")`` needs.
        reads_prediction: Read the clean latents that the velocity of the step predicts, and the noisy ones beside
            them. The gradient takes the velocity for constant.
        pooling: How queries read the features: ``query`` (attention), ``mean`` or ``max``.
        separate_queries: One query per axis; otherwise one for all, which sees the prompt if any axis may.
        num_members: Members of the ensemble. Each has queries, reads and heads of its own on the one trunk and its
            keys and values; the reward is their mean, and where they disagree it knows little, see
            ``RewardGuidance(disagreement=...)``.
        gate_width: Width of the gate that proposes weights from the prompt, 0 for none; see
            :mod:`nrg_sampler.rewards.gate`.
        mean: Mean of each raw reward over the base model's samples.
        std: Its standard deviation there: the unit of a calibrated reward.
        recommended_scale: The default guidance strength, in units of which calibrated scales are given; one number, or
            one per axis.
        recommended_damping: For each axis the power of ``1 - sigma`` by which guidance is to trust its gradient less
            in noise, 0 or more; 1 for each by default. See :mod:`nrg_sampler.guidance.trust`.
        recommended_fading: The same of ``sigma``, by which it is to trust it less near the end; 0 for each by default.
        latent_space: What :func:`nrg_sampler.rewards.latent_space.latent_space` returns for the VAE it was trained on;
            not checked if left out.
        about: For the model card: ``base_model``, ``data``, ``license`` and ``accuracy`` by noise bin and axis.
        patch_size, num_attention_heads, ...: As in ``WanTransformer3DModel``.

    Reference:
        Liu et al., 2025, arXiv:2501.13918, section 4.3 (what is scored); PRFL, arXiv:2511.21541 (query attention).
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = WanTransformer3DModel._keep_in_fp32_modules

    @register_to_config
    def __init__(
        self,
        axes: Sequence[str] = ("VQ", "MQ", "TA"),
        text_axes: Sequence[str] = ("TA",),
        num_blocks: int = 2,
        num_reads: int = 2,
        num_token_reads: int = 0,
        null_tokens: int = 2,
        prompt_in_trunk: bool = False,
        reads_prediction: bool = False,
        pooling: str = "query",
        separate_queries: bool = True,
        num_members: int = 1,
        gate_width: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        recommended_scale: float | Sequence[float] = 1.0,
        recommended_damping: Sequence[float] | None = None,
        recommended_fading: Sequence[float] | None = None,
        latent_space: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        patch_size: Sequence[int] = (1, 2, 2),
        num_attention_heads: int = 12,
        attention_head_dim: int = 128,
        in_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 8960,
        cross_attn_norm: bool = True,
        qk_norm: str | None = "rms_norm_across_heads",
        eps: float = 1e-6,
        rope_max_seq_len: int = 1024,
    ) -> None:
        super().__init__()
        if unknown := set(text_axes) - set(axes):
            raise ValueError(f"Expected `text_axes` to be some of {', '.join(axes)}, but got {', '.join(unknown)}.")
        if pooling not in POOLINGS:
            raise ValueError(f"Expected `pooling` to be one of {', '.join(POOLINGS)}, but got {pooling!r}.")
        if num_members < 1:
            raise ValueError(f"Expected `num_members` to be at least 1, but got {num_members}.")
        trunk = WanTransformer3DModel(
            num_layers=num_blocks, out_channels=in_channels, **{name: self.config[name] for name in TRUNK_OPTIONS}
        )
        dim = num_attention_heads * attention_head_dim
        self.rope = trunk.rope
        self.patch_embedding = trunk.patch_embedding
        self.condition_embedder = trunk.condition_embedder
        self.noise_beside = NoiseBeside(trunk.patch_embedding, dim) if reads_prediction else None
        self.blocks = trunk.blocks
        self.null_context = nn.Parameter(torch.randn(1, null_tokens, dim) / dim**0.5)
        self.features_norm = nn.LayerNorm(dim)
        self.text_norm = nn.LayerNorm(dim)
        num_queries = len(axes) if separate_queries else 1
        self.queries = new_queries(num_queries, dim)
        self.token_reads = new_reads(num_token_reads, dim, num_attention_heads, pooling)
        self.text_read = QueryRead(dim, num_attention_heads)
        self.reads = new_reads(num_reads, dim, num_attention_heads, pooling)
        self.heads = new_heads(len(axes), dim)
        # Queries, reads and heads of the first member are the reward's own, named as where there is one member only.
        self.further_members = nn.ModuleList(
            Member(len(axes), num_queries, num_reads, dim, num_attention_heads, pooling)
            for _ in range(num_members - 1)
        )
        self.gate = WeightGate(text_dim, len(axes), gate_width) if gate_width else None
        sees_text = [axis in text_axes for axis in axes] if separate_queries else [bool(text_axes)]
        self.register_buffer("sees_text", torch.tensor(sees_text), persistent=False)
        self.gradient_checkpointing = False

    @classmethod
    def from_transformer(cls, transformer: WanTransformer3DModel, num_blocks: int, **options: Any) -> LatentReward:
        """Start a reward from the first ``num_blocks`` blocks of a video transformer.

        Raises:
            ValueError: If the transformer has fewer blocks.
        """
        if not 1 <= num_blocks <= len(transformer.blocks):
            raise ValueError(
                f"Expected `num_blocks` between 1 and {len(transformer.blocks)} (what the transformer has), "
                f"but got {num_blocks}."
            )
        trunk = {name: transformer.config[name] for name in TRUNK_OPTIONS}
        reward: LatentReward = cls(num_blocks=num_blocks, **trunk, **options)
        names, weights = reward.state_dict().keys(), transformer.state_dict()
        reward.load_state_dict({name: weights[name] for name in weights.keys() & names}, strict=False)
        return reward

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> LatentReward:
        """Load a reward as diffusers loads a model; frozen, since only its input is ever differentiated."""
        reward: LatentReward = super().from_pretrained(*args, **options)
        reward.requires_grad_(False).eval()
        return reward

    # A pipeline looks at the signature to see which arguments it can hand on.
    @functools.wraps(ModelMixin.save_pretrained, assigned=())
    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Write config, weights and a model card to a folder; arguments as in diffusers.

        Raises:
            OSError: If the disk is full.
        """
        with writing(Path(save_directory)):
            super().save_pretrained(save_directory, *args, **options)
        with replacing(Path(save_directory) / "README.md") as partial:
            partial.write_text(model_card(self.config), encoding="utf-8", errors="replace")

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """Save memory: keep of each block what its attention gave, and compute the rest again on the way back.

        Args:
            gradient_checkpointing_func: Called with a block and its arguments to do it otherwise; by default
                :func:`nrg_sampler.rewards.recompute.recomputed`.
        """
        super().enable_gradient_checkpointing(gradient_checkpointing_func or recomputed)

    @property
    def num_members(self) -> int:
        """How many members the ensemble has."""
        return int(self.config.num_members)

    @property
    def members(self) -> tuple[Any, ...]:
        """What has ``queries``, ``reads`` and ``heads``: the reward itself, which is the first, and the others."""
        return (self, *self.further_members)

    @property
    def has_gate(self) -> bool:
        """Whether it can propose weights."""
        return self.gate is not None

    def add_gate(self, gate: WeightGate) -> None:
        """Take a trained gate, or another one, to be saved with the reward."""
        first: Any = gate.layers[0]
        self.gate = gate.to(self.queries.device)
        self.register_to_config(gate_width=first.out_features)

    @torch.no_grad()
    def propose(self, conditioning: Conditioning) -> Tensor:
        """Weights for each prompt, shape ``(B, axes)``; see :mod:`nrg_sampler.rewards.gate`."""
        embeds = conditioning.prompt_embeds
        assert self.gate is not None and embeds is not None  # checked in `propose_weights`
        own = next(self.gate.parameters())
        return shares(self.gate(pool_prompts(embeds.to(own), conditioning.prompt_mask)).float())

    def check_compatible(self, pipe: Any) -> None:
        """Refuse a pipeline with other latents or another text encoder.

        Raises:
            ValueError: If channels, text width or the VAE's kind or normalisation differ.
        """
        check_latent_space(pipe, self.config)

    def forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, members: bool = False) -> Tensor:
        """Score latents.

        Args:
            latents: Noisy latents, normalised as the pipeline has them, shape ``(B, C, T, H, W)``.
            sigma: Noise level in ``[0, 1]``, 1 is pure noise, shape ``(B,)``.
            conditioning: ``prompt_embeds`` of shape ``(B, L, text_dim)``; all-zero tokens are padding.
            members: Return the reward of each member instead of their mean.

        Returns:
            Raw rewards (logits), float32, shape ``(B, axes)``, or ``(B, members, axes)``.

        Raises:
            ValueError: If shapes do not fit the config, a text axis finds no prompt, or a velocity is missing.
        """
        self.check_latents(latents)
        self._check_prompt(conditioning)
        prompt = self._prompt(conditioning)
        return self._score(self._features(latents, sigma, conditioning, prompt), prompt, members)

    def features(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the output of the trunk, shape ``(B, N, D)``; arguments and errors as of ``forward``."""
        self.check_latents(latents)
        self._check_prompt(conditioning)
        return self._features(latents, sigma, conditioning, self._prompt(conditioning))

    def score_features(self, hidden: Tensor, conditioning: Conditioning, members: bool = False) -> Tensor:
        """Score the output of the last block of the trunk, shape ``(B, N, D)``; returns as ``forward`` does."""
        return self._score(hidden, self._prompt(conditioning), members)

    @torch.no_grad()
    def prepare(self, conditioning: Conditioning) -> Conditioning:
        """Encode the prompt once for all steps of a run; good for as long as the weights stay as they are.

        Args:
            conditioning: ``prompt_embeds`` as in ``forward``; what is padding in every row is dropped.

        Raises:
            ValueError: If a text axis finds no prompt of its width.
        """
        self._check_prompt(conditioning)
        return replace(conditioning, prepared=self._prompt(replace(conditioning, prepared=None), trimmed=True))

    def _features(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, prompt: EncodedPrompt) -> Tensor:
        self.check_velocity(sigma, conditioning.velocity)
        rotary = self.rotary(latents, conditioning.frame_stride)
        dtype = self.patch_embedding.weight.dtype
        velocity = None if conditioning.velocity is None else conditioning.velocity.to(dtype)
        return self.trunk(latents.to(dtype), sigma.to(latents.device), prompt.context, rotary, velocity)

    def _score(self, hidden: Tensor, prompt: EncodedPrompt, members: bool) -> Tensor:
        features = self.features_norm(hidden.to(self.patch_embedding.weight.dtype))
        queries, words = prompt.queries, prompt.words
        if words is not None:
            for read in self.token_reads:  # each word attends to the features, then the queries to the words
                words = read(words.expand(len(hidden), -1, -1), features)
            queries = self._informed(queries, words, prompt.mask)
        queries = queries.expand(len(hidden), -1, -1)
        raw = member_rewards(self.members, queries.chunk(self.num_members, dim=1), features)
        if members:
            return torch.stack(raw, dim=1)  # (B, M, A)
        return torch.stack(raw).mean(dim=0) if len(raw) > 1 else raw[0]

    def _informed(self, queries: Tensor, words: Tensor, mask: Tensor | None) -> Tensor:
        """Let the queries of the axes that see text attend to it."""
        queries = queries.expand(len(words), -1, -1)
        sees_text = self.sees_text.repeat(self.num_members)[:, None]
        return torch.where(sees_text, self.text_read(queries, words, mask), queries)

    def _prompt(self, conditioning: Conditioning, trimmed: bool = False) -> EncodedPrompt:
        """Encode the prompt; with ``trimmed``, which makes the host wait for the device, up to its last word only."""
        if conditioning.prepared is not None:
            prepared: EncodedPrompt = conditioning.prepared
            return prepared
        embeds, dtype = conditioning.prompt_embeds, self.patch_embedding.weight.dtype
        context = self.null_context
        queries = torch.cat([member.queries for member in self.members], dim=1)
        if self.config.prompt_in_trunk:
            assert embeds is not None  # checked before
            context = self.condition_embedder.text_embedder(embeds.to(dtype))
        if not self.config.text_axes:
            return EncodedPrompt(context, queries)
        assert embeds is not None  # checked before
        mask = (embeds != 0).any(dim=-1) if conditioning.prompt_mask is None else conditioning.prompt_mask.bool()
        mask = mask | (torch.arange(mask.shape[1], device=mask.device) == 0)  # a row that reads nothing would be NaN
        if trimmed:
            length = int(mask.any(dim=0).nonzero().max()) + 1
            embeds, mask = embeds[:, :length], mask[:, :length]
        words = self.text_norm(self.condition_embedder.text_embedder(embeds.to(dtype)))
        if self.token_reads:
            return EncodedPrompt(context, queries, words, mask)
        return EncodedPrompt(context, self._informed(queries, words, mask))

    def _check_prompt(self, conditioning: Conditioning) -> None:
        embeds = conditioning.prompt_embeds
        if not self.config.text_axes and not self.config.prompt_in_trunk:
            return
        if embeds is None or embeds.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"Expected `prompt_embeds` of shape (B, L, {self.config.text_dim}) for the axes that read the prompt, "
                f"but got {None if embeds is None else tuple(embeds.shape)}."
            )
