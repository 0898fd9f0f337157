"""Gradient checkpointing that keeps what is dear to compute and small to keep: what the attention gave.

Checkpointing in full keeps no activation of a block but what went in, and computes the whole block again on the way
back. At the sizes of videos attention is most of that work, and what it gives is a tenth of the block's activations.
Kept, only the linear layers and what stands between them are computed again [1].

Reference:
    [1] Korthikanti et al., 2022, arXiv:2205.05198 (selective activation recomputation), there the other way round:
    with short sequences and attention that keeps its scores, attention is what is cheap to compute and large to keep.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


def recomputed(block: nn.Module, *args: Any) -> Any:
    """Call a block so that its gradient costs less memory and gives the same.

    Serves diffusers' ``enable_gradient_checkpointing(recomputed)``, and is what rewards of this package use by
    default.

    Args:
        block: A transformer block, or any other module.
        args: What it is called with.

    Returns:
        What it returns.
    """
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    # Nothing is random in a block that is not trained, and to keep the state of the generator the host would wait.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": block.training}
    return checkpoint(block.__call__, *args, context_fn=contexts, **options)


def _policy(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    """Keep the fused attention of any device and library, which is one operation; recompute all else."""
    name = operation.name()
    attends = "attention" in name or "attn" in name
    return CheckpointPolicy.MUST_SAVE if attends else CheckpointPolicy.PREFER_RECOMPUTE
