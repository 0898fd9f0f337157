"""Reward guidance for ComfyUI: clone or copy this folder into ``custom_nodes/``."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .nodes import JudgeNode, RewardGuidanceNode, RewardNode


class RewardGuidanceExtension(ComfyExtension):
    """The nodes of this folder."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return them in the order of a workflow."""
        return [RewardNode, RewardGuidanceNode, JudgeNode]


async def comfy_entrypoint() -> RewardGuidanceExtension:
    """Return what ComfyUI loads."""
    return RewardGuidanceExtension()
