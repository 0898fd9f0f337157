"""The table of published rewards: what each is, where it comes from and what it costs to look at.

Nothing here loads weights; :func:`nrg_sampler.rewards.named.loading.load_named` does. To add a reward, name it here
and in ``BUILDERS`` there.

References:
    [1] Kirstain et al., 2023, arXiv:2305.01569 (PickScore).
    [2] Wu et al., 2023, arXiv:2306.09341 (HPSv2).
    [3] Hessel et al., 2021, arXiv:2104.08718 (CLIPScore).
    [4] github.com/christophschuhmann/improved-aesthetic-predictor.
    [5] github.com/discus0434/aesthetic-predictor-v2-5.
    [6] Xu et al., 2023, arXiv:2304.05977 (ImageReward).
    [7] Liu et al., 2025, arXiv:2501.13918 (VideoReward).
    [8] Ma et al., 2025, arXiv:2508.03789 (HPSv3).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from nrg_sampler.rewards.named.latent_table import LATENT_NAMES, canonical

Fit = Literal["crop", "pad", "stretch", "area"]

CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_L = "openai/clip-vit-large-patch14"
BERT = "google-bert/bert-base-uncased"
SIGLIP = "google/siglip-so400m-patch14-384"
QWEN_2B, QWEN_7B = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"
TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")  # either


@dataclass(frozen=True)
class Entry:
    """A published reward.

    Args:
        name: What people type.
        aliases: Other names for it; case, hyphens, underscores and full stops count in none.
        source: Hub id that has ``files``, or the GitHub repository.
        on_hub: Whether ``source`` is a Hub id.
        files: Names of the file with the weights, the preferred one first; one of them is enough.
        base: Hub id of the model it was made from, which has what is not in ``files``: a tokenizer or a vision tower.
        base_part: What is taken from there.
        licence: Of the weights, ``"unverified"`` where their publisher's page was not at hand.
        axes: Names of its axes.
        score: What its number is.
        factor: By which the cosine of frame and prompt is multiplied; ``None`` for the learned temperature, and where
            the number is no cosine.
        input_size: Side of the square that the vision tower looks at, in pixels.
        fit: How a frame becomes that square: its centre (``"crop"``), with black bars (``"pad"``), without its
            aspect (``"stretch"``); or a rectangle of that area with the frame's aspect instead (``"area"``).
        parameters: Number of weights that are loaded.
        download: Size of the published file in bytes, where it was at hand.
        reads_prompts: Whether it is called with prompts.
        gradient: Whether its score has a gradient with respect to pixels.
        mean: Published mean of each axis, ``None`` where there is none.
        std: Published standard deviation.
        frames: Which latent frames to look at while guiding, as ``RewardGuidance(frames=...)`` names them. Scored on
            all of them, image rewards cost motion.
        beside: Further files of ``source`` that are needed.
        wording: GitHub repository and file that has the wording of the question which the reward is asked.
        half: Whether it computes in bfloat16 on an accelerator where no other precision is asked for.
        weights_at_hand: Whether the published weights were loaded here; else only tiny random ones in their layout.
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    on_hub: bool
    files: tuple[str, ...]
    base: str
    base_part: str
    licence: str
    axes: tuple[str, ...]
    score: str
    factor: float | None
    input_size: int
    fit: Fit
    parameters: int
    download: int | None = None
    reads_prompts: bool = True
    gradient: bool = True
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    frames: str = "turns"
    beside: tuple[str, ...] = ()
    wording: tuple[str, str] | None = None
    half: bool = False
    weights_at_hand: bool = False


TABLE = (
    Entry(
        name="pickscore",
        aliases=("pick",),
        source="yuvalkirstain/PickScore_v1",
        on_hub=True,
        files=TRANSFORMERS_FILES,
        base=CLIP_H,
        base_part="tokenizer",
        licence="MIT",
        axes=("preference",),
        score="exp(logit_scale)·cos, about 18 to 24",
        factor=None,
        input_size=224,
        fit="crop",
        parameters=986_109_441,
        download=3_940_000_000,
    ),
    Entry(
        name="hpsv2",
        aliases=("hps", "hpsv2.0"),
        source="xswu/HPSv2",
        on_hub=True,
        files=("HPS_v2_compressed.pt",),
        base=CLIP_H,
        base_part="tokenizer",
        licence="Apache-2.0",
        axes=("preference",),
        score="cos, 0.2 to 0.4",
        factor=1.0,
        input_size=224,
        fit="pad",
        parameters=986_109_441,
    ),
    Entry(
        name="hpsv2.1",
        aliases=(),
        source="xswu/HPSv2",
        on_hub=True,
        files=("HPS_v2.1_compressed.pt",),
        base=CLIP_H,
        base_part="tokenizer",
        licence="Apache-2.0",
        axes=("preference",),
        score="cos, 0.2 to 0.4",
        factor=1.0,
        input_size=224,
        fit="pad",
        parameters=986_109_441,
    ),
    Entry(
        name="clipscore",
        aliases=("clip",),
        source=CLIP_L,
        on_hub=True,
        files=TRANSFORMERS_FILES,
        base=CLIP_L,
        base_part="tokenizer",
        licence="MIT (unverified)",
        axes=("TA",),
        score="100·cos",
        factor=100.0,
        input_size=224,
        fit="crop",
        parameters=427_616_513,
    ),
    Entry(
        name="aesthetic",
        aliases=("aesthetics", "laion-aesthetic"),
        source="christophschuhmann/improved-aesthetic-predictor",
        on_hub=False,
        files=("sac+logos+ava1-l14-linearMSE.pth",),
        base=CLIP_L,
        base_part="vision tower",
        licence="unverified",
        axes=("VQ",),
        score="rating, 1 to 10",
        factor=None,
        input_size=224,
        fit="crop",
        parameters=304_894_177,
        reads_prompts=False,
    ),
    Entry(
        name="aesthetic-v2.5",
        aliases=(),
        source="discus0434/aesthetic-predictor-v2-5",
        on_hub=False,
        files=("aesthetic_predictor_v2_5.pth",),
        base=SIGLIP,
        base_part="vision tower",
        licence="unverified",
        axes=("VQ",),
        score="rating, 1 to 10",
        factor=None,
        input_size=384,
        fit="stretch",
        parameters=429_546_785,
        reads_prompts=False,
    ),
    Entry(
        name="imagereward",
        aliases=("imagereward-v1.0",),
        source="THUDM/ImageReward",
        on_hub=True,
        files=("ImageReward.pt",),
        base=BERT,
        base_part="tokenizer",
        licence="Apache-2.0",
        axes=("TA",),
        score="in its standard units, about -2 to 2",
        factor=None,
        input_size=224,
        fit="crop",
        parameters=446_206_689,
        mean=(0.0,),
        std=(1.0,),
    ),
    Entry(
        name="videoreward",
        aliases=("videoalign",),
        source="KwaiVGI/VideoReward",
        on_hub=True,
        files=("checkpoint-11352/model.pth",),
        base=QWEN_2B,
        base_part="config and tokenizer",
        licence="MIT",
        axes=("VQ", "MQ", "TA"),
        score="in its own standard units",
        factor=None,
        input_size=448,
        fit="area",
        parameters=2_208_563_200,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        frames="all",
        beside=("model_config.json",),
        wording=("KwaiVGI/VideoAlign", "prompt_template.py"),
        half=True,
    ),
    Entry(
        name="hpsv3",
        aliases=(),
        source="MizzenAI/HPSv3",
        on_hub=True,
        files=("HPSv3.safetensors",),
        base=QWEN_7B,
        base_part="config and tokenizer",
        licence="MIT (unverified)",
        axes=("preference",),
        score="mean of a preference whose deviation it gives too",
        factor=None,
        input_size=448,
        fit="area",
        parameters=7_748_610_610,
        download=16_600_000_000,
        wording=("MizzenAI/HPSv3", "hpsv3/dataset/data_collator_qwen.py"),
        half=True,
    ),
)

# Known by name; why none can be had from here.
NOT_OFFERED = {
    "ocr": "it reads the text in a picture by a package of its own, without a gradient; `--judge module:FILE.py:NAME` "
    "takes a judge of yours, `--judge vlm:URL#MODEL` a model that reads",
    "unifiedreward": "it writes its scores as text, without a gradient; behind a server it grades by the questions of "
    "`--judge vlm:URL#MODEL`",
    "visionreward": "it is published with code of its own, and no code from elsewhere is run; `aesthetic` rates a "
    "picture's quality",
    "videoscore": "it is published with a package of its own; `videoreward` scores the same of a video",
    "videoscore2": "it writes its scores as text, without a gradient; behind a server it grades by the questions of "
    "`--judge vlm:URL#MODEL`",
    "dover": "its network is of a package of its own; `aesthetic` rates a picture's quality",
    "vlm": "a model behind a URL has no gradient; it grades finished clips, as `--judge vlm:URL#MODEL`",
}


NAMES = {canonical(name): entry for entry in TABLE for name in (entry.name, *entry.aliases)}


# Further names of those.
OTHER_NAMES = {
    "unifiedreward20": "unifiedreward",
    "visionrewardvideo": "visionreward",
    "visionrewardimage": "visionreward",
    "videoalign": "videoreward",
}


def find(name: str) -> Entry | None:
    """Return the entry of a name or alias, of a reward that sees frames.

    Raises:
        ValueError: If the name is that of a reward which is known but not offered, with the reason, or sees latents.
    """
    key = canonical(name)
    if key in LATENT_NAMES:
        raise ValueError(
            f"Expected a reward that sees frames, but {name!r} sees the noisy latents of {LATENT_NAMES[key].hosts}; "
            f"guide such a pipeline with `attach(pipe, {LATENT_NAMES[key].name!r})`, or use one of {_listed()}."
        )
    key = OTHER_NAMES.get(key, key)
    if key in NOT_OFFERED:
        raise ValueError(
            f"Expected a reward that can guide, but {name!r} cannot: {NOT_OFFERED[key]}; use one of {_listed()}."
        )
    return NAMES.get(key)


def unknown(name: str) -> ValueError:
    """Return the error for what is neither a name nor a folder, with the name that was probably meant."""
    offered = NAMES | LATENT_NAMES
    close = difflib.get_close_matches(canonical(name), [*offered, *NOT_OFFERED], n=1, cutoff=0.6)
    meant = [offered[key].name if key in offered else key for key in close]
    advice = f"did you mean {meant[0]!r}? The names are {_listed()}" if meant else f"use one of {_listed()}"
    return ValueError(
        f"Expected the name, the folder or the Hub id of a published reward, but got {name!r}; {advice}."
    )


def _listed() -> str:
    return ", ".join(entry.name for entry in TABLE)
