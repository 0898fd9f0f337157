"""Start a stage from an earlier pipeline's weights: the same autoencoder, or a transformer that gets more blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from nrg_sampler.checkpoints import first_line

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

RESIDUALS = ("attn1.to_out.0", "attn2.to_out.0", "ffn.net.2")  # the last layer of each branch of a block


def start_vae(vae: AutoencoderKLWan, pipeline: Path) -> None:
    """Copy the weights of a pipeline's autoencoder, in place.

    Raises:
        ValueError: If it is of another architecture.
    """
    from diffusers import AutoencoderKLWan

    _load(vae, AutoencoderKLWan.from_pretrained(pipeline, subfolder="vae").float().state_dict(), pipeline)


def start_transformer(transformer: WanTransformer3DModel, pipeline: Path) -> None:
    """Copy the weights of a pipeline's transformer, in place, which may have fewer blocks of the same width.

    Each block begins as the one at the same relative depth. Where one is taken twice, the second copy's branches end
    in zeros: the deeper model computes what the shallower did, and has the features to go on from (after Chen et al.,
    "Net2Net", 2016).

    Raises:
        ValueError: If it has more blocks, or layers of other sizes.
    """
    from diffusers import WanTransformer3DModel

    earlier = WanTransformer3DModel.from_pretrained(pipeline, subfolder="transformer").float()
    have, want = len(earlier.blocks), len(transformer.blocks)
    if have > want:
        raise ValueError(
            f"Expected a transformer of at most {want} blocks in {pipeline} to start from, but it has {have}; start "
            "from another pipeline, or from nothing."
        )
    state = {name: value for name, value in earlier.state_dict().items() if not name.startswith("blocks.")}
    taken: set[int] = set()
    for index in range(want):
        source = index * have // want
        for name, value in earlier.blocks[source].state_dict().items():
            silent = source in taken and name.rpartition(".")[0] in RESIDUALS
            state[f"blocks.{index}.{name}"] = torch.zeros_like(value) if silent else value
        taken.add(source)
    _load(transformer, state, pipeline)


def _load(model: nn.Module, state: dict[str, torch.Tensor], pipeline: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"Expected a {type(model).__name__} of the same layers in {pipeline} to start from, but "
            f"{first_line(error)}; start from another pipeline, or from nothing."
        ) from error
