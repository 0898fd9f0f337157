"""Declarations of the nodes; what they do is in ``nrg_sampler.hosts.comfyui`` and ``nrg_sampler.judges``."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from nrg_sampler import RewardGuidance
from nrg_sampler.guidance.presets import ABOUT, DEFAULT, PRESETS
from nrg_sampler.hosts.comfyui import ComfyGuidance, conditioning_of, load_for_comfyui
from nrg_sampler.judges.loading import load_judge

CATEGORY = "sampling/reward guidance"
NrgReward = io.Custom("NRG_REWARD")


class RewardNode(io.ComfyNode):
    """Load a reward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node."""
        return io.Schema(
            node_id="NRGReward",
            display_name="Reward (by name)",
            category=CATEGORY,
            description="Load what is to steer the sampling: a published image reward, or a latent reward.",
            inputs=[
                io.String.Input(
                    "name",
                    default="pickscore",
                    tooltip="pickscore, hpsv2, clipscore, aesthetic and others of `nrg-sampler rewards`. Several as "
                    "aesthetic=1,clipscore=2. With the folder of its files: pickscore:FOLDER. Or the folder or Hub "
                    "id of a latent reward that was trained for your model.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the model that you guide. Published rewards see pictures, so the latents are "
                    "decoded for them; a latent reward does not need it.",
                ),
            ],
            outputs=[NrgReward.Output(display_name="reward")],
        )

    @classmethod
    def execute(cls, name: str, vae: Any = None) -> io.NodeOutput:
        """Load it, for ComfyUI to keep until an input changes."""
        return io.NodeOutput(load_for_comfyui(name.strip(), vae))


class RewardGuidanceNode(io.ComfyNode):
    """Guide a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node."""
        presets = "; ".join(f"{name}: {about}" for name, about in ABOUT.items())
        return io.Schema(
            node_id="NRGRewardGuidance",
            display_name="Reward guidance",
            category=CATEGORY,
            description="Steer every step of the sampler toward what the reward likes. Connect it between the model "
            "and the sampler.",
            inputs=[
                io.Model.Input("model", tooltip="A flow-matching model: Wan, LTX, HunyuanVideo, FLUX, SD3."),
                NrgReward.Input("reward", tooltip="From the node Reward (by name)."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="The text of your positive prompt. Rewards such as pickscore read it with a text encoder "
                    "of their own. Connect the same text that is encoded.",
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=-10000.0,
                    max=10000.0,
                    step=0.1,
                    tooltip="How strongly to steer. 0 changes nothing; a negative one steers away. There is no value "
                    "that suits every reward: raise it until the result changes, lower it if it looks overdone.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="How much each axis of the reward counts, as VQ=1,TA=2. Empty: all count alike.",
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT,
                    tooltip=f"In which steps the reward is evaluated. {presets}. Fewer are faster.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="The positive conditioning, for a latent reward. Published rewards do not need it.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        reward: Any,
        text: str,
        scale: float,
        weights: str,
        preset: str,
        positive: Any = None,
    ) -> io.NodeOutput:
        """Return a guided clone of the model."""
        guidance = RewardGuidance.preset(preset, weights=weights.strip() or None, scale=scale)
        return io.NodeOutput(ComfyGuidance(reward, conditioning_of(positive, text), guidance).attached(model))


class JudgeNode(io.ComfyNode):
    """Grade finished pictures or a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare the node."""
        return io.Schema(
            node_id="NRGJudge",
            display_name="Judge",
            category=CATEGORY,
            description="Grade a result. Use another judge than the reward that guided: guidance raises what its own "
            "reward likes, which proves nothing.",
            inputs=[
                io.Image.Input("images", tooltip="The decoded result."),
                io.String.Input(
                    "judge",
                    default="clipscore",
                    tooltip="A name of `nrg-sampler rewards`, NAME:FOLDER, videoreward:FOLDER, or a judge of your own "
                    "as module:FILE.py:NAME.",
                ),
                io.String.Input("text", default="", multiline=True, tooltip="The text that was asked for."),
                io.Boolean.Input(
                    "one_clip",
                    default=True,
                    tooltip="On: the images are the frames of one clip. Off: each is graded for itself.",
                ),
                io.Float.Input("fps", default=16.0, min=0.1, max=240.0, tooltip="Frames per second of the clip."),
            ],
            outputs=[
                io.String.Output(display_name="scores"),
                io.Float.Output(display_name="score", tooltip="Mean of the first axis over the images."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: torch.Tensor, judge: str, text: str, one_clip: bool, fps: float) -> io.NodeOutput:
        """Grade them, and show the grades in the node."""
        with torch.inference_mode(False):
            grader = load_judge(judge.strip(), str(comfy.model_management.get_torch_device()))
        frames = images.movedim(-1, 1)  # (N, 3, H, W)
        clips = frames.movedim(0, 1)[None] if one_clip else frames.unsqueeze(2)  # (B, 3, T, H, W)
        scores = grader(clips, [text] * len(clips), fps)  # (B, axes)
        grades = "\n".join(
            ", ".join(f"{axis} {value:.4g}" for axis, value in zip(grader.axes, row, strict=True))
            for row in scores.tolist()
        )
        return io.NodeOutput(grades, float(scores[:, 0].mean()), ui=ui.PreviewText(grades))
