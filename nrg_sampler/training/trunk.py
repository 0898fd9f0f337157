"""Choose which part of a reward's trunk is trained: all of it, a low-rank change of it, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nrg_sampler.rewards.latent import LatentReward


TRUNK_MODULES = ("patch_embedding", "condition_embedder", "blocks")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def open_trunk(reward: LatentReward, trunk: str, lora_rank: int = 16) -> None:
    """Set which parameters of ``reward`` train; its queries, reads and heads always do.

    Args:
        reward: Changed in place.
        trunk: ``full``, ``lora`` (adapters in every linear layer of the blocks, alpha twice the rank) or ``frozen``.
        lora_rank: Rank of the adapters.

    Raises:
        ImportError: If ``peft``, which LoRA needs, is not installed.
    """
    reward.requires_grad_(True)
    if trunk == "full":
        return
    for name in TRUNK_MODULES:
        getattr(reward, name).requires_grad_(False)
    if trunk == "lora":
        peft = _peft()
        settings = peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=list(LORA_TARGETS))
        peft.LoraModel(reward.blocks, settings, "default")  # puts the adapters into the blocks themselves


def merge_trunk(reward: LatentReward) -> None:
    """Fold adapters, if there are any, into the weights they change, so that the reward is a plain one again."""
    if not any("lora_" in name for name, _ in reward.blocks.named_parameters()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(reward.blocks.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            reward.blocks.set_submodule(name, layer.get_base_layer())


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft; install it with pip install "nrg-sampler[train]".') from error
    return peft
