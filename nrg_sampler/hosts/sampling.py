"""Sample clips to the end: the one call of a pipeline that every command, table and training stage makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

# What changes with the batch in a sampling loop; pipelines hand out those of them that they have.
TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")

# (pipe, step, timestep, tensors) -> tensors that replace those of the loop; it stops the run by raising.
OnStep: TypeAlias = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class SampledClips(NamedTuple):
    """Clips that are finished.

    Args:
        frames: As the pipeline returns them, by its ``output_type``.
        latents: Of the last step, as they lie at the scheduler.
        prompt_embeds: Text features of the positive prompts, shape ``(B, L, D)``.
    """

    frames: Any
    latents: Tensor
    prompt_embeds: Tensor


def sample_clips(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], on_step: OnStep | None = None, **arguments: Any
) -> SampledClips:
    """Sample one clip of each prompt.

    Args:
        pipe: A pipeline with a callback at the end of a step.
        prompts: One for each clip.
        seeds: Of the noise, one for each; it is drawn on the CPU, so that every device starts from the same.
        on_step: Called after each step.
        **arguments: Passed to the pipeline.
    """
    last: dict[str, Any] = {}

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed = {} if on_step is None else on_step(pipe, step, timestep, tensors)
        last.update({**tensors, **changed})
        return changed

    output = pipe(
        list(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=[name for name in TENSORS if name in pipe._callback_tensor_inputs],
        **arguments,
    )
    return SampledClips(output.frames, last["latents"], last["prompt_embeds"])
