"""What differs between pipeline families, as data, and what is refused and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nrg_sampler.hosts.layouts import (
    CHANNELS_LAST,
    FRAME_CHANNELS_LAST,
    FRAME_IN_TOKENS,
    FRAME_IN_VIDEO,
    IMAGE,
    IMAGE_PATCHES,
    IMAGE_TOKENS,
    MIXED_FRAME,
    PLACED_TOKENS,
    SHAPED_PATCHES,
    SIZED_TOKENS,
    VIDEO,
    GivenFrame,
    Layout,
)

# How a pipeline runs classifier-free guidance, and so where the positive prompt is.
IN_TURN = "one call each, positive first"
NEGATIVE_FIRST = "one batch, negative first"
POSITIVE_FIRST = "one batch, positive first"
EMBEDDED = "one call, the scale is an input"
GUIDER = "by a guider, positive first"


@dataclass(frozen=True)
class Family:
    """Where a family of pipelines keeps what guidance needs.

    Args:
        name: The family's name.
        pipelines: Names of its diffusers classes; subclasses belong to it too.
        cfg: How classifier-free guidance is run, and so where the positive prompt is.
        layout: How latents lie at the scheduler; ``None`` where only the latents tell.
        given: The first frame, where it is given.
        denoisers: Components that predict the velocity; those a pipeline lacks are passed over.
        prompt: Argument of the denoiser that carries the prompt's features.
        prompt_mask: Argument that says which of their tokens count, if there is one.
        exploding: Whether the scheduler runs in the variance-exploding scale.
        denoiser_layout: How latents lie at the denoiser, where that differs in more than what is added to them.
        needs_prompt: Whether a call without a prompt is a mistake.
    """

    name: str
    pipelines: tuple[str, ...]
    cfg: str = IN_TURN
    layout: Layout | None = VIDEO
    given: GivenFrame | None = None
    denoisers: tuple[str, ...] = ("transformer",)
    prompt: str = "encoder_hidden_states"
    prompt_mask: str | None = None
    exploding: bool = False
    denoiser_layout: Layout | None = None
    needs_prompt: bool = True


BOTH = ("transformer", "transformer_2")  # Wan 2.2 hands over from the first to the second
MASK = "encoder_attention_mask"

WAN = Family(
    "Wan 2.1, 2.2",
    ("WanPipeline", "WanVideoToVideoPipeline", "WanVACEPipeline", "WanModularPipeline"),
    denoisers=BOTH,
)
FAMILIES = (
    # video
    WAN,
    Family("Wan 2.1, 2.2 image-to-video", ("WanImageToVideoPipeline",), given=MIXED_FRAME, denoisers=BOTH),
    Family("SkyReels-V2", ("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline")),
    Family("LTX", ("LTXPipeline",), NEGATIVE_FIRST, SIZED_TOKENS, prompt_mask=MASK),
    Family(
        "LTX image-to-video",
        ("LTXImageToVideoPipeline",),
        NEGATIVE_FIRST,
        given=FRAME_IN_TOKENS,
        prompt_mask=MASK,
        denoiser_layout=SIZED_TOKENS,
    ),
    Family("LTX with conditions", ("LTXConditionPipeline",), NEGATIVE_FIRST, PLACED_TOKENS, prompt_mask=MASK),
    Family("LTX-2 (video; its audio is not guided)", ("LTX2Pipeline",), NEGATIVE_FIRST, SIZED_TOKENS),
    Family("HunyuanVideo", ("HunyuanVideoPipeline",), EMBEDDED, prompt_mask=MASK),
    Family("HunyuanVideo 1.5", ("HunyuanVideo15Pipeline", "HunyuanVideo15ModularPipeline"), GUIDER, prompt_mask=MASK),
    Family("Mochi", ("MochiPipeline",), NEGATIVE_FIRST, prompt_mask=MASK),
    Family("Sana Video", ("SanaVideoPipeline",), NEGATIVE_FIRST, prompt_mask=MASK),
    Family(
        "Sana Video image-to-video",
        ("SanaImageToVideoPipeline",),
        NEGATIVE_FIRST,
        given=FRAME_IN_VIDEO,
        prompt_mask=MASK,
    ),
    Family("Kandinsky 5", ("Kandinsky5T2VPipeline", "Kandinsky5T2IPipeline"), layout=CHANNELS_LAST),
    Family("Kandinsky 5 image-to-video", ("Kandinsky5I2VPipeline",), layout=CHANNELS_LAST, given=FRAME_CHANNELS_LAST),
    Family("Cosmos-Predict2", ("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"), exploding=True),
    Family("Motif Video", ("MotifVideoPipeline",), GUIDER, prompt_mask=MASK),
    Family("EasyAnimate", ("EasyAnimatePipeline",), NEGATIVE_FIRST),
    # images
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline",), NEGATIVE_FIRST, IMAGE),
    Family("FLUX.1", ("FluxPipeline",), EMBEDDED, IMAGE_PATCHES),
    Family("FLUX.2", ("Flux2Pipeline",), EMBEDDED, IMAGE_TOKENS),
    Family("Qwen-Image", ("QwenImagePipeline",), layout=SHAPED_PATCHES, prompt_mask="encoder_hidden_states_mask"),
    Family("Lumina 2", ("Lumina2Pipeline",), layout=IMAGE, prompt_mask=MASK),
    Family("Z-Image", ("ZImagePipeline",), POSITIVE_FIRST, IMAGE, prompt="cap_feats"),
    Family("Chroma", ("ChromaPipeline",), layout=IMAGE_PATCHES, prompt_mask="attention_mask"),
    Family("AuraFlow", ("AuraFlowPipeline",), NEGATIVE_FIRST, IMAGE),
    Family("CogView4", ("CogView4Pipeline",), layout=IMAGE),
    Family("Sana", ("SanaPipeline",), NEGATIVE_FIRST, IMAGE, prompt_mask=MASK),
)
UNKNOWN = Family("unknown", (), "as it may be", layout=None, denoisers=BOTH, needs_prompt=False)

NOT_FLOW = "it is not a rectified flow: its model predicts noise or the diffusion velocity of a DDPM"
FRAME_BY_FRAME = "it steps every frame with a scheduler and a noise level of its own"
EDM = "it is an EDM diffusion that calls its scheduler twice a step"
REFUSED = {
    "CogVideoXPipeline": NOT_FLOW,
    "CogVideoXImageToVideoPipeline": NOT_FLOW,
    "CogVideoXVideoToVideoPipeline": NOT_FLOW,
    "LattePipeline": NOT_FLOW,
    "AllegroPipeline": NOT_FLOW,
    "StableDiffusionPipeline": NOT_FLOW,
    "StableDiffusionXLPipeline": NOT_FLOW,
    "SkyReelsV2DiffusionForcingPipeline": FRAME_BY_FRAME,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": FRAME_BY_FRAME,
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": FRAME_BY_FRAME,
    "SanaSprintPipeline": "its TrigFlow path is not straight",
    "CosmosTextToWorldPipeline": EDM,
    "CosmosVideoToWorldPipeline": EDM,
}


def family_of(pipeline_class: type) -> Family:
    """Return the family that a pipeline class belongs to, or ``UNKNOWN``.

    Raises:
        ValueError: If it is known not to work.
    """
    for name in (base.__name__ for base in pipeline_class.__mro__):
        if name in REFUSED:
            raise ValueError(
                f"Expected a pipeline of a rectified flow, but {name} cannot be guided: {REFUSED[name]}; "
                "`nrg-sampler families` lists those that can."
            )
        for family in FAMILIES:
            if name in family.pipelines:
                return family
    return UNKNOWN


def require_flow(scheduler: Any) -> None:
    """Refuse a scheduler that does not take the velocity of a rectified flow.

    Raises:
        ValueError: If it is made for another parametrisation.
    """
    config = scheduler.config
    velocity = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas", False)
    if not velocity and not type(scheduler).__name__.startswith("FlowMatch"):
        raise ValueError(
            f"Expected a rectified-flow scheduler, but got {_describe(scheduler)}; "
            "use a FlowMatch scheduler, or one with prediction_type='flow_prediction' and use_flow_sigmas=True."
        )


def _describe(scheduler: Any) -> str:
    settings = [
        f"{name}={scheduler.config[name]!r}"
        for name in ("prediction_type", "use_flow_sigmas")
        if name in scheduler.config
    ]
    return type(scheduler).__name__ + (f" with {', '.join(settings)}" if settings else "")
