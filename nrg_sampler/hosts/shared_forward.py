"""Share the forward pass: the reward reads the features that the denoiser computes for the prompt anyway.

Only the backward pass through the first blocks is extra. It needs a reward whose blocks are the denoiser's own and
read the prompt as they do; whatever would falsify it silently is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.rewards.base import Conditioning, SharedForward
from nrg_sampler.rewards.recompute import recomputed

SHARED_PARTS = ("patch_embedding", "condition_embedder.time_embedder", "condition_embedder.time_proj")
# Parts of the names that diffusers gives its hooks, and what they do to features or weights.
UNSAFE_HOOKS = {
    "group_offload": "group offloading, whose weights are gone when the backward pass needs them",
    "fbc_": "First-Block cache, which skips blocks",
    "mag_cache": "MagCache, which skips blocks",
    "cache": "a cache, which replaces features",
    "pyramid_attention": "pyramid attention broadcast, which replaces features",
    "layer_skip": "layer skipping",
}


class SharedReward(SharedForward):
    """A reward evaluated on the features that the denoiser computed; all other attributes are those of the reward.

    Args:
        reward: A latent reward with ``prompt_in_trunk``.
    """

    def __init__(self, reward: Any) -> None:
        self._reward = reward
        self._given: Tensor | None = None
        self._leaf: Tensor | None = None
        self._features: Tensor | None = None
        self._mode_before = self._following = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Any:
        """Score latents by a forward pass of the reward's own."""
        return self._reward(latents, sigma, conditioning)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Serve as pre-hook of the denoiser: follow the gradient from its latents on, in a step's first call."""
        given = kwargs.get("hidden_states", args[0] if args else None)
        if given is self._given:  # the call for the negative prompt has the same latents
            return None
        if torch.is_inference_mode_enabled():
            raise ValueError(
                "Expected no inference mode for guidance with forward='shared', but the pipeline runs in one; "
                "call it under `torch.no_grad()` instead."
            )
        assert given is not None
        self._given, self._leaf, self._features = given, given.detach().clone().requires_grad_(), None
        self._mode_before, self._following = torch.is_grad_enabled(), True
        torch.set_grad_enabled(True)
        followed = self._leaf.view_as(self._leaf)  # not the leaf itself: counters of operations stumble over it
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": followed}
        return (followed, *args[1:]), kwargs

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Serve as hook of the last shared block: keep its features and let the rest run without a gradient."""
        # Called for the negative prompt, or once more to compute activations that were not kept.
        if not self._following:
            return None
        self._features, self._following = output, False
        torch.set_grad_enabled(self._mode_before)
        return output.detach()

    def evaluate(self, latents: Tensor, conditioning: Conditioning, **options: Any) -> tuple[Tensor, Tensor]:
        """Return the latents that the denoiser started from, and the raw reward ``(B, axes)`` that hangs on them.

        ``members=True`` gives what each member says instead, ``(B, members, axes)``.

        Raises:
            ValueError: If the denoiser did not see these latents just before.
        """
        leaf, features, self._features = self._leaf, self._features, None
        if leaf is None or features is None or leaf.shape != latents.shape:
            seen = None if leaf is None else tuple(leaf.shape)
            raise ValueError(
                f"Expected the denoiser to have seen latents of shape {tuple(latents.shape)} in this step, but it saw "
                f"{seen}; use forward='separate' with this pipeline."
            )
        return leaf, self._reward.score_features(features, conditioning, **options)


@contextmanager
def shared_forward(pipe: Any, reward: Any) -> Iterator[SharedReward]:
    """Let ``reward`` read the features of the pipeline's denoiser inside the ``with`` block.

    Raises:
        ValueError: If the reward is not made of the denoiser's blocks, or the pipeline does what would falsify them.
    """
    denoiser = pipe.transformer
    _check_pipeline(pipe, denoiser)
    _check_reward(denoiser, reward)
    with following(denoiser, SharedReward(reward)) as shared:
        yield shared


@contextmanager
def following(denoiser: Any, shared: SharedReward) -> Iterator[SharedReward]:
    """Hook ``shared`` into a denoiser inside the ``with`` block, unchecked.

    With gradient checkpointing enabled in the reward, the denoiser's blocks that it reads save memory alike.
    """
    last = denoiser.blocks[len(shared.blocks) - 1]
    hooks = [
        denoiser.register_forward_pre_hook(shared.enter, with_kwargs=True),
        last.register_forward_hook(shared.leave),
    ]
    tracked = [weight for weight in denoiser.parameters() if weight.requires_grad]
    saving = shared.gradient_checkpointing and not denoiser.gradient_checkpointing
    try:
        if saving:
            denoiser.enable_gradient_checkpointing(recomputed)
        for weight in tracked:  # else activations would be kept for gradients that are not needed
            weight.requires_grad_(False)
        yield shared
    finally:
        if saving:
            denoiser.disable_gradient_checkpointing()
        for weight in tracked:
            weight.requires_grad_(True)
        for hook in hooks:
            hook.remove()


def _check_pipeline(pipe: Any, denoiser: Any) -> None:
    if getattr(pipe, "transformer_2", None) is not None or not hasattr(denoiser, "blocks"):
        raise ValueError(
            f"Expected a Wan pipeline with one transformer for forward='shared', but got {type(pipe).__name__}; "
            "use forward='separate'."
        )
    for module in denoiser.modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                "Expected a denoiser that is not compiled for forward='shared', but got a compiled one, in which "
                "hooks break the graph; use forward='separate'."
            )
        for hook in getattr(getattr(module, "_diffusers_hook", None), "hooks", {}):
            for name, effect in UNSAFE_HOOKS.items():
                if name in hook:
                    raise ValueError(
                        f"Expected a denoiser that runs every block for forward='shared', but it has {effect}; "
                        "use forward='separate', or switch that off."
                    )


def _check_reward(denoiser: Any, reward: Any) -> None:
    from nrg_sampler.rewards.latent import LatentReward  # brings diffusers in, which `attach` alone does not need

    if not isinstance(reward, LatentReward) or not reward.config.prompt_in_trunk:
        raise ValueError(
            "Expected a latent reward that was trained with prompt_in_trunk=True for forward='shared', for the "
            "denoiser's features know the prompt; use forward='separate' with this reward."
        )
    if reward.needs_velocity:
        raise ValueError(
            "Expected a latent reward that reads the noisy latents alone for forward='shared', as the denoiser does, "
            "but this one reads the predicted clean latents; use forward='separate' with it."
        )
    if len(reward.blocks) > len(denoiser.blocks):
        raise ValueError(
            f"Expected a reward with at most the {len(denoiser.blocks)} blocks of the denoiser for forward='shared', "
            f"but got {len(reward.blocks)}; use the reward of this pipeline."
        )
    parts = {part: (reward.get_submodule(part), denoiser.get_submodule(part)) for part in SHARED_PARTS}
    parts |= {f"block {i}": (block, denoiser.blocks[i]) for i, block in enumerate(reward.blocks)}
    for name, (own, theirs) in parts.items():
        if not _same_weights(own, theirs):
            raise ValueError(
                f"Expected the reward's {name} to be the denoiser's own for forward='shared', but the weights differ; "
                "use forward='separate' with a reward whose trunk was tuned."
            )


def _same_weights(own: nn.Module, theirs: nn.Module) -> bool:
    weights, others = own.state_dict(), theirs.state_dict()
    return weights.keys() == others.keys() and all(
        value.shape == others[name].shape
        and torch.equal(value.to(others[name].device, others[name].dtype), others[name])
        for name, value in weights.items()
    )
