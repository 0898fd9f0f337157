"""Put the trained parts together: a genuine ``WanPipeline`` folder and the reward beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import WanPipeline

SAMPLING = {
    "height": 64,
    "width": 64,
    "num_frames": 13,
    "num_inference_steps": 25,
    "guidance_scale": 4.0,
    "max_sequence_length": 32,
    "closed_vocabulary": True,
}


def assemble_pipeline(folder: Path) -> WanPipeline:
    """Build the pipeline from the parts that the stages saved, in float32.

    Raises:
        FileNotFoundError: If a stage has not been run.
    """
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    for part, stage in (("vae", "vae"), ("text_encoder", "base"), ("transformer", "base")):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"Expected {folder / part}, made by the stage `{stage}`: run that one first.")
    return WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
        transformer=WanTransformer3DModel.from_pretrained(folder / "transformer").requires_grad_(False).eval(),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae").requires_grad_(False).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
    )


def save_bundle(folder: Path, out: Path) -> None:
    """Write ``out/pipeline`` and ``out/reward`` in half precision."""
    from nrg_sampler.rewards.latent import LatentReward

    pipe = assemble_pipeline(folder)
    pipe.to(dtype=torch.float16)
    pipe.save_pretrained(out / "pipeline")
    (out / "pipeline" / "sampling.json").write_text(json.dumps(SAMPLING, indent=2) + "\n")
    LatentReward.from_pretrained(folder / "reward").to(dtype=torch.float16).save_pretrained(out / "reward")
