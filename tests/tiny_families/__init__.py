"""One tiny random pipeline for each family, built from the real diffusers classes around a transformer of one block.

Prompts are given as embeddings, so that no text encoder has to be built, and results stay latents, so that only
pipelines that encode a picture have an autoencoder. Width and height differ, so that a swap shows.
"""

from __future__ import annotations

from tiny_families.base import Blueprint
from tiny_families.images import IMAGES
from tiny_families.ltx import LTX
from tiny_families.pairs import PAIRS
from tiny_families.videos import VIDEOS
from tiny_families.wan import WAN

TINY: dict[str, Blueprint] = {**WAN, **LTX, **VIDEOS, **PAIRS, **IMAGES}
