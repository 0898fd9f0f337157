"""A ComfyUI node (V3) that guides a Wan model with a latent reward: put this file into ``custom_nodes/``."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import ComfyExtension, io

from nrg_sampler import Conditioning, LatentReward, RewardGuidance, guided_velocity
from nrg_sampler.flow import clean_from, velocity_from_clean


class RewardGuidanceNode(io.ComfyNode):
    """Guide what classifier-free guidance returns."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NRGRewardGuidance",
            display_name="Reward guidance (Flow-NRG)",
            category="sampling/custom_sampling",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.String.Input("reward", tooltip="Folder or Hub id of a LatentReward for this model's latents"),
                io.String.Input("weights", default="1:1:1", tooltip="One weight an axis, as VQ:MQ:TA"),
                io.Float.Input("scale", default=1.0, min=-100.0, max=100.0, step=0.1),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, reward: str, weights: str, scale: float) -> io.NodeOutput:
        guidance = RewardGuidance(weights=weights, scale=scale)
        prompt = Conditioning(positive[0][0])  # (1, L, D)
        with torch.inference_mode(False):  # ComfyUI runs nodes in it, and tensors made there take no gradient
            judge = LatentReward.from_pretrained(reward)

        def guide(args: dict[str, Any]) -> torch.Tensor:
            """Take and return the predicted clean latents, as ComfyUI's flow models state them."""
            latents, clean, sigma = args["input"], args["denoised"], args["sigma"]
            velocity = velocity_from_clean(latents, clean, sigma)
            prompts = prompt.for_batch(len(latents))
            velocity = guided_velocity(latents, velocity, sigma, judge.to(latents.device), prompts, guidance)
            return clean_from(latents, velocity, sigma)

        patched = model.clone()
        patched.set_model_sampler_post_cfg_function(guide)
        return io.NodeOutput(patched)


class RewardGuidanceExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [RewardGuidanceNode]


async def comfy_entrypoint() -> RewardGuidanceExtension:
    return RewardGuidanceExtension()
