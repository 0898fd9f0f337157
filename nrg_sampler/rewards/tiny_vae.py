"""A small autoencoder that decodes for the gradient: a tenth of the work, with the latents of the large one.

Its config says how many channels its latents have, not whose they are. So both decode the same latents once, those of
a picture that is drawn here, and what they show has to agree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nrg_sampler.checkpoints import first_line, readable
from nrg_sampler.rewards.decoding import Decoder, channels_of, decodes_pictures, frozen_call, unhooked
from nrg_sampler.rewards.latent_space import normalised

SIDE = 64  # of the picture, in pixels
LEAST_AGREEMENT = 0.5  # correlation of the pixels; those of other latents have nothing to do with each other


def load_tiny(source: str, vae: nn.Module) -> nn.Module:
    """Load an autoencoder that stands in for another one as a decoder.

    Args:
        source: A folder or a Hub id.
        vae: The pipeline's own.

    Returns:
        Frozen, on the device of ``vae``, in float32.

    Raises:
        ValueError: If there is none, or it decodes other latents.
    """
    import diffusers

    with readable(source):
        try:
            name = diffusers.AutoencoderTiny.load_config(source)["_class_name"]
            tiny: Any = getattr(diffusers, name).from_pretrained(source, torch_dtype=torch.float32)
        except (OSError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"Expected an autoencoder of diffusers in {source!r}, but found none ({first_line(error)}); pass the "
                "folder or Hub id of one, as madebyollin/taef1 for FLUX."
            ) from error
    tiny = tiny.eval().requires_grad_(False).to(next(vae.parameters()).device)
    check_same_latents(tiny, vae, source)
    return tiny  # type: ignore[no-any-return]


def check_same_latents(tiny: nn.Module, vae: nn.Module, source: str) -> None:
    """Refuse an autoencoder that decodes other latents than ``vae``.

    Raises:
        ValueError: If channels or sizes differ, or what both decode does not agree.
    """
    own, theirs = channels_of(vae), channels_of(tiny)
    if own != theirs:
        raise _other(source, f"its latents have {theirs} channels and not {own}")
    latents = _of_a_picture(vae)
    expected, found = (frozen_call(Decoder(one), latents) for one in (vae, tiny))
    if expected.shape != found.shape:
        sizes = " and not ".join("x".join(map(str, shown.shape[2:])) for shown in (found, expected))
        raise _other(source, f"the frames it decodes have the size {sizes}")
    agreement = torch.corrcoef(torch.stack([expected.float().flatten(), found.float().flatten()]))[0, 1].item()
    if not agreement >= LEAST_AGREEMENT:
        raise _other(source, f"what both decode correlates by {agreement:.2f} only")


@torch.no_grad()
def _of_a_picture(vae: Any) -> Tensor:
    """Latents ``(1, C, 1, h, w)`` of a picture with colours and edges."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    disc = ((rows**2 + columns**2) < 0.4).float()
    picture = torch.stack([rows * (1 - disc) + disc, columns, -rows * (1 - disc) - disc])[None, :, None]
    weight = next(vae.parameters())
    picture = picture.to(weight.device, weight.dtype)
    with unhooked(vae):
        encoded = vae.encode(picture[:, :, 0] if decodes_pictures(vae) else picture)
    latents: Tensor = normalised(vae, encoded.latent_dist.mode()).float()
    return latents if latents.ndim == 5 else latents[:, :, None]


def _other(source: str, how: str) -> ValueError:
    return ValueError(
        f"Expected a small autoencoder with the latents of the pipeline's own in {source!r}, but {how}; pass the one "
        "that was made for this model."
    )
