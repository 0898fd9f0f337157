"""Sample an arm: the clips, what the guiding reward reads off them and what they cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.evaluation.memory import peak_memory
from nrg_sampler.evaluation.panel import Judge
from nrg_sampler.pipeline import NRGFlowPipeline
from nrg_sampler.rewards.base import Conditioning, Reward, normalised
from nrg_sampler.search import best_of_n, candidate_seeds, search
from nrg_sampler.shapes.scenes import Prompt, caption


class Sampled(NamedTuple):
    """Clips of one arm.

    Args:
        clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
        target: What the guiding reward reads off the finished latents, in its standard deviations, shape
            ``(B, axes)``; ``None`` without one.
        seconds: Time to sample and decode, per clip.
        evaluations: Forward passes of the video model, per clip.
        memory_mib: Peak memory of the batch; ``None`` if the system does not tell.
    """

    clips: Tensor
    target: Tensor | None
    seconds: float
    evaluations: float
    memory_mib: float | None


class ArmSampler:
    """Sample any arm with one pipeline.

    Args:
        pipe: An ``NRGFlowPipeline`` of the shapes world; its reward is the target.
        rewards: Other rewards that arms name.
        judges: Who may choose among candidates.
        dtype: Precision of the arithmetic by autocast; ``None`` leaves it at that of the weights.
        sampling: Further arguments of the pipeline, the same in every arm.
    """

    def __init__(
        self,
        pipe: Any,
        rewards: Mapping[str, Reward] | None = None,
        judges: Mapping[str, Judge] | None = None,
        dtype: torch.dtype | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self._pipes = {"target": pipe}
        for name, reward in (rewards or {}).items():
            self._pipes[name] = NRGFlowPipeline.from_pipe(pipe, reward_model=reward)
        self._judges, self._dtype, self._sampling = judges or {}, dtype, dict(sampling or {})

    def can(self, arm: Arm) -> bool:
        """Return whether the reward and the judge that ``arm`` names are there."""
        return arm.reward in self._pipes and (arm.judge is None or arm.judge in self._judges)

    def sample(self, arm: Arm, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sampled:
        """Sample one clip of each prompt."""
        pipe = self._pipes[arm.reward]
        device = torch.device(getattr(pipe, "device", "cpu"))
        with self._precision(device), peak_memory(device) as memory, _counted(pipe.transformer) as count:
            started = time.perf_counter()
            clips, latents, embeds = self._run(pipe, arm, prompts, seeds)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - started
        target = self._target(latents, embeds)
        batch = len(prompts)
        return Sampled(clips.float().cpu(), target, seconds / batch, count[0] / batch, memory.mib)

    @contextmanager
    def _precision(self, device: torch.device) -> Iterator[None]:
        if self._dtype is None:
            yield
            return
        with torch.autocast(device.type, self._dtype), warnings.catch_warnings():
            # of layer norms, which stay in float32
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
            yield

    def _run(
        self, pipe: Any, arm: Arm, prompts: Sequence[Prompt], seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        texts = [caption(prompt) for prompt in prompts]
        arguments = {"output_type": "pt", **self._sampling}
        if arm.steps != 1:
            steps = arguments.get("num_inference_steps", pipe.sampling_defaults.get("num_inference_steps"))
            arguments["num_inference_steps"] = round(arm.steps * steps)
        guidance = {"reward_scale": 0.0} if arm.guidance is None else {"reward_guidance": arm.guidance}
        arguments.update(guidance)
        if arm.search is None:
            return _plain(pipe, texts, seeds, arguments)
        n = arm.search.candidates
        candidates = [candidate_seeds(seed, n) for seed in seeds]
        if arm.judge is None:
            found = search(pipe, texts, arm.search, candidates, **arguments)
        else:
            grades = self._judges[arm.judge]
            repeated = [prompt for prompt in prompts for _ in range(n)]
            found = best_of_n(
                pipe, texts, n, lambda clips, _: grades(clips, repeated).mean(dim=1), candidates, **arguments
            )
        return found.frames.transpose(1, 2), found.latents, found.prompt_embeds

    def _target(self, latents: Tensor, embeds: Tensor) -> Tensor | None:
        reward = self._pipes["target"].reward_model
        if reward is None:
            return None
        with torch.no_grad():
            raw = reward(
                latents.float(), torch.zeros(len(latents), device=latents.device), Conditioning(embeds.float())
            )
        return normalised(reward, raw).cpu()


def _plain(
    pipe: Any, texts: list[str], seeds: Sequence[int], arguments: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    last: dict[str, Tensor] = {}

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last.update(tensors)
        return {}

    output = pipe(
        texts,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        **arguments,
    )
    return output.frames.transpose(1, 2), last["latents"], last["prompt_embeds"]


@contextmanager
def _counted(transformer: torch.nn.Module) -> Iterator[list[int]]:
    """Count the samples that pass through the video model."""
    count = [0]

    def see(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        count[0] += len(latents)

    hook = transformer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()
