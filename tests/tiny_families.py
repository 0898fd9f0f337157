"""One tiny random pipeline for each family, built from the real diffusers classes around a transformer of one block.

Prompts are given as embeddings, so that no text encoder has to be built, and results stay latents, so that only
pipelines that encode a picture have an autoencoder. Width and height differ, so that a swap shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tiny import schedulers, tiny_tokenizer

DIM = 16  # numbers per prompt token
TOKENS = 5


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Tiny:
    """A pipeline, how to call it and, written a second time, how its latents become ``(B, C, T, H, W)``."""

    pipe: Any
    arguments: dict[str, Any]
    unpack: Callable[..., torch.Tensor] = lambda latents, seen, sigma: latents
    size: dict[str, Any] = field(default_factory=dict)

    def sample(self, **changes: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 3, "output_type": "latent", "return_dict": False, "generator": generator}
        return self.pipe(**{**settings, **self.size, **self.arguments, **changes})[0]


def pipeline(name: str, scheduler: Any = None, **components: Any) -> Any:
    """Build a pipeline whose components are ``None`` unless given."""
    import inspect

    import diffusers

    kind = getattr(diffusers, name)
    parameters = inspect.signature(kind.__init__).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty][1:]
    components = {"scheduler": scheduler or schedulers()["euler"], **components}
    pipe = kind(**{**dict.fromkeys(required), **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def transformer(name: str, **config: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    return getattr(diffusers, name)(**config).eval()


def prompts(*names: str, shape: tuple[int, ...] = (1, TOKENS, DIM)) -> dict[str, Any]:
    return {name: rand(*shape, seed=seed) for seed, name in enumerate(names, start=1)}


def masks(*names: str) -> dict[str, Any]:
    return {name: torch.ones(1, TOKENS, dtype=torch.int64) for name in names}


BOTH = ("prompt_embeds", "negative_prompt_embeds")
BOTH_MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
VIDEO = {"height": 32, "width": 48, "num_frames": 5}
IMAGE = {"height": 32, "width": 48}


def wan_transformer(name: str = "WanTransformer3DModel", channels: int = 4, **config: Any) -> Any:
    common = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": DIM, "freq_dim": 16, "ffn_dim": 16}
    return transformer(
        name, in_channels=channels, num_layers=1, rope_max_seq_len=32, **{"out_channels": 4, **common, **config}
    )


def wan_vae(**config: Any) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    small = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    statistics = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return AutoencoderKLWan(temperal_downsample=[False, True, True], **small, **statistics, **config).eval()


def picture() -> Any:
    from PIL import Image

    return Image.new("RGB", (48, 32), (200, 40, 40))


def wan() -> Tiny:
    return Tiny(pipeline("WanPipeline", transformer=wan_transformer()), prompts(*BOTH), size=VIDEO)


def wan_22() -> Tiny:
    pipe = pipeline("WanPipeline", transformer=wan_transformer(), transformer_2=wan_transformer(), boundary_ratio=0.7)
    return Tiny(pipe, prompts(*BOTH), size=VIDEO)


def wan_22_5b() -> Tiny:
    pipe = pipeline("WanPipeline", transformer=wan_transformer(), expand_timesteps=True)
    return Tiny(pipe, prompts(*BOTH), size=VIDEO)


def wan_video_to_video() -> Tiny:
    pipe = pipeline("WanVideoToVideoPipeline", transformer=wan_transformer(), vae=wan_vae())
    return Tiny(pipe, {"video": [picture()] * 5, "strength": 1.0, **prompts(*BOTH)}, size=IMAGE)


def wan_image_to_video() -> Tiny:
    pipe = pipeline("WanImageToVideoPipeline", transformer=wan_transformer(channels=12), vae=wan_vae())
    return Tiny(pipe, {"image": picture(), **prompts(*BOTH)}, size=VIDEO)


def with_seen_frame(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    return torch.cat([seen["hidden_states"][:, :, :1].to(latents), latents[:, :, 1:]], dim=2)


def wan_22_5b_image_to_video() -> Tiny:
    pipe = pipeline("WanImageToVideoPipeline", transformer=wan_transformer(), vae=wan_vae(), expand_timesteps=True)
    return Tiny(pipe, {"image": picture(), **prompts(*BOTH)}, with_seen_frame, VIDEO)


def wan_vace() -> Tiny:
    denoiser = wan_transformer("WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=72)
    pipe = pipeline("WanVACEPipeline", transformer=denoiser, vae=wan_vae())
    return Tiny(pipe, prompts(*BOTH), size=VIDEO)


def skyreels() -> Tiny:
    denoiser = wan_transformer("SkyReelsV2Transformer3DModel")
    return Tiny(
        pipeline("SkyReelsV2Pipeline", schedulers()["unipc"], transformer=denoiser), prompts(*BOTH), size=VIDEO
    )


def skyreels_image_to_video() -> Tiny:
    denoiser = wan_transformer("SkyReelsV2Transformer3DModel", channels=12, image_dim=8, added_kv_proj_dim=24)
    pipe = pipeline(
        "SkyReelsV2ImageToVideoPipeline",
        transformer=denoiser,
        vae=wan_vae(),
        **clip(),
        scheduler=schedulers()["unipc"],
    )
    return Tiny(pipe, {"image": picture(), **prompts(*BOTH)}, size=VIDEO)


def clip() -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4
    )
    sides = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": CLIPImageProcessorPil(**sides)}


LTX_SIZE = {"height": 64, "width": 96, "num_frames": 9}  # latents (1, 4, 2, 2, 3)


def ltx_transformer() -> Any:
    return transformer(
        "LTXVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=DIM,
    )


def ltx_vae() -> Any:
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def ltx_unpack(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    from diffusers import LTXPipeline

    return LTXPipeline._unpack_latents(latents[:, -12:], 2, 2, 3)


def ltx() -> Tiny:
    pipe = pipeline("LTXPipeline", transformer=ltx_transformer())
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, ltx_unpack, LTX_SIZE)


def ltx_with_frame(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    frame = ltx_unpack(seen["hidden_states"][:1], seen, sigma)[:, :, :1]
    return torch.cat([frame.to(latents), latents], dim=2)


def ltx_image_to_video() -> Tiny:
    pipe = pipeline("LTXImageToVideoPipeline", transformer=ltx_transformer(), vae=ltx_vae())
    return Tiny(pipe, {"image": picture(), **prompts(*BOTH), **masks(*BOTH_MASKS)}, ltx_with_frame, LTX_SIZE)


def ltx_condition() -> Tiny:
    """With a frame given in the middle, whose tokens come before those of the video."""
    pipe = pipeline("LTXConditionPipeline", transformer=ltx_transformer(), vae=ltx_vae())
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    given = [LTXVideoCondition(image=picture(), frame_index=index) for index in (0, 8)]
    return Tiny(pipe, {"conditions": given, **prompts(*BOTH), **masks(*BOTH_MASKS)}, ltx_unpack, LTX_SIZE)


def ltx_2() -> Tiny:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": TOKENS}
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    torch.manual_seed(0)
    connectors = LTX2TextConnectors(
        caption_channels=DIM,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in heads.items()},
    )
    denoiser = transformer(
        "LTX2VideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=128,
        audio_out_channels=128,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=DIM,
    )
    pipe = pipeline("LTX2Pipeline", transformer=denoiser, connectors=connectors)
    audio = SimpleNamespace(mel_bins=64, latent_channels=8)
    pipe.audio_vae = SimpleNamespace(latents_mean=torch.zeros(128), latents_std=torch.ones(128), config=audio)
    unscaled = SimpleNamespace(scaling_factor=1.0)
    pipe.vae = SimpleNamespace(latents_mean=torch.zeros(4), latents_std=torch.ones(4), config=unscaled)
    guidance = {"spatio_temporal_guidance_blocks": [0]}
    return Tiny(pipe, {**guidance, **prompts(*BOTH), **masks(*BOTH_MASKS)}, ltx_unpack, LTX_SIZE)


def hunyuan_video() -> Tiny:
    denoiser = transformer(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=DIM,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 4),
    )
    pooled = prompts("pooled_prompt_embeds", shape=(1, 8))
    arguments = {**prompts("prompt_embeds"), **pooled, **masks("prompt_attention_mask")}
    return Tiny(pipeline("HunyuanVideoPipeline", transformer=denoiser), arguments, size=VIDEO)


def hunyuan_15_transformer() -> Any:
    return transformer(
        "HunyuanVideo15Transformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=DIM,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )


class ConfigOnly(torch.nn.Module):
    """Stands where a pipeline reads an autoencoder's config and, without a picture, nothing else."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        for name in ("spatial_compression_ratio", "temporal_compression_ratio"):
            setattr(self, name, config.get(name))


HUNYUAN_15_VAE = {"latent_channels": 4, "spatial_compression_ratio": 16, "temporal_compression_ratio": 4}
SECOND_TEXT = ("prompt_embeds_2", "negative_prompt_embeds_2")
HUNYUAN_15_MASKS = ("prompt_embeds_mask", "negative_prompt_embeds_mask")
HUNYUAN_15_SECOND_MASKS = ("prompt_embeds_mask_2", "negative_prompt_embeds_mask_2")


def hunyuan_15_prompts() -> dict[str, Any]:
    embeds = {**prompts(*BOTH), **prompts(*SECOND_TEXT, shape=(1, TOKENS, 8))}
    return {**embeds, **masks(*HUNYUAN_15_MASKS), **masks(*HUNYUAN_15_SECOND_MASKS)}


def hunyuan_video_15() -> Tiny:
    from diffusers import ClassifierFreeGuidance

    pipe = pipeline(
        "HunyuanVideo15Pipeline",
        transformer=hunyuan_15_transformer(),
        vae=ConfigOnly(**HUNYUAN_15_VAE),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    return Tiny(pipe, hunyuan_15_prompts(), size={"height": 32, "width": 48, "num_frames": 5})


def mochi() -> Tiny:
    from diffusers import FlowMatchEulerDiscreteScheduler

    denoiser = transformer(
        "MochiTransformer3DModel",
        in_channels=12,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        text_embed_dim=DIM,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    pipe = pipeline("MochiPipeline", FlowMatchEulerDiscreteScheduler(invert_sigmas=True), transformer=denoiser)
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, size={"height": 32, "width": 48, "num_frames": 7})


def sana_video_transformer() -> Any:
    return transformer(
        "SanaVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=DIM,
        rope_max_seq_len=32,
    )


SANA_VIDEO = {"height": 32, "width": 64, "frames": 5, "use_resolution_binning": False}


def sana_video() -> Tiny:
    pipe = pipeline(
        "SanaVideoPipeline", transformer=sana_video_transformer(), vae=wan_vae(), scheduler=schedulers()["dpm++"]
    )
    return Tiny(pipe, {"negative_prompt": None, **prompts(*BOTH), **masks(*BOTH_MASKS)}, size=SANA_VIDEO)


def with_first_frame(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    return torch.cat([seen["hidden_states"][:1, :, :1].to(latents), latents], dim=2)


def sana_image_to_video() -> Tiny:
    pipe = pipeline("SanaImageToVideoPipeline", transformer=sana_video_transformer(), vae=wan_vae())
    given = {"image": picture(), "negative_prompt": None}
    return Tiny(pipe, {**given, **prompts(*BOTH), **masks(*BOTH_MASKS)}, with_first_frame, SANA_VIDEO)


def kandinsky_transformer(**config: Any) -> Any:
    return transformer(
        "Kandinsky5Transformer3DModel",
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=DIM,
        in_text_dim2=8,
        time_dim=16,
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(2, 2, 4),
        **config,
    )


def kandinsky_prompts() -> dict[str, Any]:
    lengths = torch.tensor([0, TOKENS], dtype=torch.int32)
    return {
        **prompts("prompt_embeds_qwen", "negative_prompt_embeds_qwen"),
        **prompts("prompt_embeds_clip", "negative_prompt_embeds_clip", shape=(1, 8)),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_cu_seqlens": lengths,
    }


def from_channels_last(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    return torch.einsum("bthwc->bcthw", latents)


def kandinsky() -> Tiny:
    pipe = pipeline("Kandinsky5T2VPipeline", transformer=kandinsky_transformer())
    return Tiny(pipe, kandinsky_prompts(), from_channels_last, VIDEO)


def kandinsky_image() -> Tiny:
    pipe = pipeline("Kandinsky5T2IPipeline", transformer=kandinsky_transformer())
    pipe.resolutions = [(IMAGE["width"], IMAGE["height"])]
    return Tiny(pipe, kandinsky_prompts(), from_channels_last, IMAGE)


def kandinsky_image_to_video() -> Tiny:
    def unpack(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
        frame = seen["hidden_states"][:, :1, :, :, :4].to(latents)
        return from_channels_last(torch.cat([frame, latents], dim=1), seen, sigma)

    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
    ).eval()
    pipe = pipeline("Kandinsky5I2VPipeline", transformer=kandinsky_transformer(visual_cond=True), vae=vae)
    return Tiny(pipe, {"image": picture(), **kandinsky_prompts()}, unpack, {**VIDEO, "num_frames": 21})


def cosmos(name: str, channels: int, arguments: dict[str, Any], size: dict[str, Any]) -> Tiny:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):  # without torchvision, which is used to resize a mask of zeros
        resize = SimpleNamespace(resize=lambda mask, size, interpolation: mask[..., : size[0], : size[1]])
        transformer_cosmos.transforms = SimpleNamespace(
            functional=resize, InterpolationMode=SimpleNamespace(NEAREST="nearest")
        )
    denoiser = transformer(
        "CosmosTransformer3DModel",
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        text_embed_dim=DIM,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
    )
    pipe = pipeline(
        name,
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        transformer=denoiser,
        vae=wan_vae(),
        safety_checker=SafeAlways(),
    )
    unpack = lambda latents, seen, sigma: latents / (1 + sigma / (1 - sigma))  # noqa: E731
    return Tiny(pipe, {**arguments, **prompts(*BOTH)}, unpack, size)


class SafeAlways(torch.nn.Module):
    """Stands for the guard of the Cosmos pipelines, a package of its own."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def cosmos_image() -> Tiny:
    return cosmos("Cosmos2TextToImagePipeline", 4, {}, IMAGE)


def cosmos_video() -> Tiny:
    return cosmos("Cosmos2VideoToWorldPipeline", 5, {"image": picture()}, VIDEO)


def motif() -> Tiny:
    from diffusers import ClassifierFreeGuidance

    denoiser = transformer(
        "MotifVideoTransformer3DModel",
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=DIM,
        rope_axes_dim=(2, 2, 4),
    )
    guider = ClassifierFreeGuidance(guidance_scale=4.0)
    vae = ConfigOnly(z_dim=4, scale_factor_temporal=4, scale_factor_spatial=8)
    pipe = pipeline("MotifVideoPipeline", transformer=denoiser, guider=guider, vae=vae)
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, size=VIDEO)


def easy_animate() -> Tiny:
    denoiser = transformer(
        "EasyAnimateTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=DIM,
    )
    pipe = pipeline("EasyAnimatePipeline", transformer=denoiser, vae=ConfigOnly(**HUNYUAN_15_VAE))
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, size={"height": 64, "width": 96, "num_frames": 5})


def one_frame(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    return latents[:, :, None]


def stable_diffusion_3() -> Tiny:
    denoiser = transformer(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=DIM,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    pooled = prompts("pooled_prompt_embeds", "negative_pooled_prompt_embeds", shape=(1, 8))
    pipe = pipeline("StableDiffusion3Pipeline", transformer=denoiser)
    return Tiny(pipe, {**prompts(*BOTH), **pooled}, one_frame, IMAGE)


def patches_to_image(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
    from diffusers import FluxPipeline

    return FluxPipeline._unpack_latents(latents, 32, 48, 8)[:, :, None]


PATCHED_IMAGE = {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}


def flux_transformer() -> Any:
    return transformer(
        "FluxTransformer2DModel",
        **PATCHED_IMAGE,
        num_single_layers=1,
        joint_attention_dim=DIM,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )


def flux() -> Tiny:
    arguments = {**prompts("prompt_embeds"), **prompts("pooled_prompt_embeds", shape=(1, 8))}
    return Tiny(pipeline("FluxPipeline", transformer=flux_transformer()), arguments, patches_to_image, IMAGE)


def full_flux() -> Any:
    """Return a FLUX pipeline with text encoders and autoencoder, which can be saved and called with a prompt."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=2,
        shift_factor=0.1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return pipeline(
        "FluxPipeline",
        transformer=flux_transformer(),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=tiny_t5(),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
    )


def full_ltx() -> Any:
    """Return an LTX pipeline with text encoder and autoencoder, which can be saved and called with a prompt."""
    return pipeline(
        "LTXPipeline",
        transformer=ltx_transformer(),
        vae=ltx_vae(),
        text_encoder=tiny_t5(),
        tokenizer=tiny_tokenizer(),
    )


def tiny_t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32, d_model=DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2, relative_attention_num_buckets=8
    )
    return T5EncoderModel(config).eval()


def flux_2() -> Tiny:
    def unpack(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
        from diffusers import Flux2Pipeline

        return torch.stack(list(Flux2Pipeline._unpack_latents_with_ids(latents, seen["img_ids"])))[:, :, None]

    denoiser = transformer(
        "Flux2Transformer2DModel",
        **PATCHED_IMAGE,
        num_single_layers=1,
        joint_attention_dim=DIM,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )
    return Tiny(pipeline("Flux2Pipeline", transformer=denoiser), prompts("prompt_embeds"), unpack, IMAGE)


def qwen_image() -> Tiny:
    def unpack(latents: torch.Tensor, seen: dict[str, Any], sigma: float) -> torch.Tensor:
        from diffusers import QwenImagePipeline

        return QwenImagePipeline._unpack_latents(latents, 32, 48, 8)

    denoiser = transformer(
        "QwenImageTransformer2DModel",
        **PATCHED_IMAGE,
        out_channels=4,
        joint_attention_dim=DIM,
        axes_dims_rope=(2, 2, 4),
    )
    arguments = {**prompts(*BOTH), **masks("prompt_embeds_mask", "negative_prompt_embeds_mask")}
    return Tiny(pipeline("QwenImagePipeline", transformer=denoiser), arguments, unpack, IMAGE)


def lumina_2() -> Tiny:
    denoiser = transformer(
        "Lumina2Transformer2DModel",
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=DIM,
    )
    pipe = pipeline("Lumina2Pipeline", transformer=denoiser)
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, one_frame, IMAGE)


def z_image() -> Tiny:
    denoiser = transformer(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=DIM,
        axes_dims=[4, 4, 4],
        axes_lens=[64, 16, 16],
    )
    embeds = {name: [rand(length, DIM, seed=length)] for name, length in zip(BOTH, (TOKENS, 3))}
    return Tiny(pipeline("ZImagePipeline", transformer=denoiser), embeds, one_frame, IMAGE)


def chroma() -> Tiny:
    denoiser = transformer(
        "ChromaTransformer2DModel",
        **PATCHED_IMAGE,
        num_single_layers=1,
        joint_attention_dim=DIM,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    pipe = pipeline("ChromaPipeline", transformer=denoiser)
    counted = {name: mask.float() for name, mask in masks(*BOTH_MASKS).items()}
    return Tiny(pipe, {**prompts(*BOTH), **counted}, patches_to_image, IMAGE)


def aura_flow() -> Tiny:
    denoiser = transformer(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=DIM,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    pipe = pipeline("AuraFlowPipeline", transformer=denoiser)
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, one_frame, IMAGE)


def cogview_4() -> Tiny:
    denoiser = transformer(
        "CogView4Transformer2DModel",
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=DIM,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(8, 8),
    )
    return Tiny(pipeline("CogView4Pipeline", transformer=denoiser), prompts(*BOTH), one_frame, IMAGE)


def sana() -> Tiny:
    denoiser = transformer(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=DIM,
        sample_size=8,
    )
    pipe = pipeline("SanaPipeline", schedulers()["dpm++"], transformer=denoiser)
    settings = {"negative_prompt": None, "use_resolution_binning": False, "height": 128, "width": 192}
    return Tiny(pipe, {**prompts(*BOTH), **masks(*BOTH_MASKS)}, one_frame, settings)


TINY: dict[str, Callable[[], Tiny]] = {
    "Wan": wan,
    "Wan 2.2": wan_22,
    "Wan 2.2 5B": wan_22_5b,
    "Wan video-to-video": wan_video_to_video,
    "Wan image-to-video": wan_image_to_video,
    "Wan 2.2 5B image-to-video": wan_22_5b_image_to_video,
    "Wan VACE": wan_vace,
    "SkyReels-V2": skyreels,
    "SkyReels-V2 image-to-video": skyreels_image_to_video,
    "LTX": ltx,
    "LTX image-to-video": ltx_image_to_video,
    "LTX with conditions": ltx_condition,
    "LTX-2": ltx_2,
    "HunyuanVideo": hunyuan_video,
    "HunyuanVideo 1.5": hunyuan_video_15,
    "Mochi": mochi,
    "Sana Video": sana_video,
    "Sana Video image-to-video": sana_image_to_video,
    "Kandinsky 5": kandinsky,
    "Kandinsky 5 image": kandinsky_image,
    "Kandinsky 5 image-to-video": kandinsky_image_to_video,
    "Cosmos-Predict2 image": cosmos_image,
    "Cosmos-Predict2 video": cosmos_video,
    "Motif Video": motif,
    "EasyAnimate": easy_animate,
    "Stable Diffusion 3": stable_diffusion_3,
    "FLUX.1": flux,
    "FLUX.2": flux_2,
    "Qwen-Image": qwen_image,
    "Lumina 2": lumina_2,
    "Z-Image": z_image,
    "Chroma": chroma,
    "AuraFlow": aura_flow,
    "CogView4": cogview_4,
    "Sana": sana,
}
