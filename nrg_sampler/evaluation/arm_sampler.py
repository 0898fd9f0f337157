"""Sample an arm: the clips, what the guiding reward reads off them and what they cost."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nrg_sampler.cost.memory import peak_memory
from nrg_sampler.evaluation.arms import Arm
from nrg_sampler.evaluation.panel import Grader, in_columns
from nrg_sampler.hosts.pipeline import NRGFlowPipeline
from nrg_sampler.hosts.prompts import frame_rate
from nrg_sampler.hosts.sampling import SampledClips, sample_clips
from nrg_sampler.json_text import to_json
from nrg_sampler.lookahead import lookahead
from nrg_sampler.rewards.base import Conditioning, Reward, score_clean
from nrg_sampler.rewards.weights import RewardWeights
from nrg_sampler.search import Search, candidate_seeds, search
from nrg_sampler.shapes.oracle import AXES
from nrg_sampler.shapes.scenes import Prompt, caption


class ArmClips(NamedTuple):
    """Clips of one arm.

    Args:
        clips: Shape ``(B, 3, T, H, W)``, in ``[0, 1]``.
        target: What the guiding reward reads off the finished latents, in its standard deviations, shape
            ``(B, 3)``, not a number on an axis that it has not; ``None`` without one.
        seconds: Time to sample and decode, per clip.
        cpu_seconds: Processor time of the same, per clip, which other programs do not disturb; ``None`` on another
            device.
        decoding: Share of that time spent on decoding.
        evaluations: Forward passes of the video model, per clip.
        memory_mib: Peak memory of the batch; ``None`` if the system does not tell.
    """

    clips: Tensor
    target: Tensor | None
    seconds: float
    cpu_seconds: float | None
    decoding: float
    evaluations: float
    memory_mib: float | None


class ArmSampler:
    """Sample any arm with one pipeline.

    Args:
        pipe: An ``NRGFlowPipeline`` of the shapes world; its reward is the target.
        rewards: Other rewards that arms name.
        dtype: Precision of the arithmetic by autocast; ``None`` leaves it at that of the weights.
        sampling: Further arguments of the pipeline, the same in every arm.
        fingerprints: What tells each reward from another of the same name.
        judges: Who may score look-ahead samples.
    """

    def __init__(
        self,
        pipe: Any,
        rewards: Mapping[str, Reward] | None = None,
        dtype: torch.dtype | None = None,
        sampling: Mapping[str, Any] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        judges: Mapping[str, Grader] | None = None,
    ) -> None:
        self._judges = judges or {}
        self._pipes = {"target": pipe}
        for name, reward in (rewards or {}).items():
            self._pipes[name] = NRGFlowPipeline.from_pipe(pipe, reward_model=reward)
        self._dtype, self._sampling, self._fingerprints = dtype, dict(sampling or {}), fingerprints or {}

    def can(self, arm: Arm) -> bool:
        """Return whether the reward that ``arm`` names is there."""
        return arm.reward in self._pipes

    def check(self, arms: Iterable[Arm]) -> None:
        """Refuse arms whose weights are not of the axes of the reward that guides them.

        Raises:
            ValueError: With the first of them.
        """
        for arm in arms:
            if arm.guidance is None or arm.guidance.axis_weights.auto or not self.can(arm):
                continue
            axes = self._pipes[arm.reward].reward_model.axes
            try:
                arm.guidance.axis_weights.resolve(axes)
            except ValueError as error:
                raise ValueError(
                    f"Expected arms whose weights are of the reward's axes, {', '.join(axes)}, but {arm.name!r} is "
                    f"not; name others, as --arms '{axes[0]}=1 scale=2'. {error}"
                ) from error

    def source(self, arm: Arm) -> str:
        """Name what decides how single clips of ``arm`` are sampled; arms of one source share their clips."""
        guidance = arm.guidance if arm.guidance and arm.guidance.scale else None
        thinning = arm.search if arm.search and arm.search.moments else None
        settings: dict[str, Any] = {"steps": arm.steps}
        if guidance:
            settings["guidance"] = guidance.to_dict()
        if thinning:
            settings["search"] = thinning.to_dict()
        if arm.lookahead:
            settings["lookahead"] = {**arm.lookahead.to_dict(), "judge": arm.judge}
        if guidance or thinning or (arm.lookahead and arm.judge is None):
            settings["reward"] = [arm.reward, self._fingerprints.get(arm.reward)]
        if settings == {"steps": 1}:
            return "unguided"
        digest = hashlib.sha256(to_json(settings, sort_keys=True).encode()).hexdigest()
        kind = "looking ahead" if arm.lookahead else "searched" if thinning else "unguided"
        return f"{arm.weights if guidance else kind} {digest[:12]}"

    def sample(self, arm: Arm, prompts: Sequence[Prompt], seeds: Sequence[int]) -> ArmClips:
        """Sample one clip of each prompt from the source of ``arm``; nothing is chosen among finished clips."""
        pipe = self._pipes[arm.reward]
        device = torch.device(getattr(pipe, "device", "cpu"))
        with self._precision(device), peak_memory(device) as memory, _counted(pipe.transformer) as count:
            watch = _Watch(device)
            with self._looking(pipe, arm, prompts, seeds):
                clips = self._run(pipe, arm, prompts, seeds, watch)
            seconds, cpu_seconds, decoding = watch.read()
        target = self._target(clips.latents, clips.prompt_embeds, [caption(prompt) for prompt in prompts])
        batch = len(prompts)
        cpu = cpu_seconds / batch if device.type == "cpu" else None
        frames = clips.frames.transpose(1, 2).float().cpu()
        return ArmClips(frames, target, seconds / batch, cpu, decoding, count[0] / batch, memory.mib)

    @contextmanager
    def _looking(self, pipe: Any, arm: Arm, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Iterator[None]:
        """Let look-ahead samples pull the clips, those of each prompt by further seeds of its own."""
        if arm.lookahead is None:
            yield
            return
        further = [candidate_seeds(seed, 1 + arm.lookahead.samples)[1:] for seed in seeds]
        grader = self._judges[arm.judge] if arm.judge else None
        weights = RewardWeights.parse(arm.lookahead.weights).resolve(AXES)

        def judge(clips: Tensor) -> Tensor:
            assert grader is not None
            return grader(clips, prompts) @ torch.tensor(weights)

        with lookahead(pipe, judge if grader else None, arm.lookahead, seeds=further):
            yield

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
        self, pipe: Any, arm: Arm, prompts: Sequence[Prompt], seeds: Sequence[int], watch: _Watch
    ) -> SampledClips:
        texts = [caption(prompt) for prompt in prompts]
        arguments = {"output_type": "pt", **self._sampling}
        if arm.steps != 1:
            steps = arguments.get("num_inference_steps", pipe.sampling_defaults.get("num_inference_steps"))
            arguments["num_inference_steps"] = round(arm.steps * steps)
        guidance = {"reward_scale": 0.0} if arm.guidance is None else {"reward_guidance": arm.guidance}
        arguments.update(guidance)
        if arm.search is None or not arm.search.moments:
            return sample_clips(pipe, texts, seeds, watch.mark, **arguments)
        return _thinned(pipe, texts, seeds, arguments, arm.search)

    def _target(self, latents: Tensor, embeds: Tensor, texts: Sequence[str]) -> Tensor | None:
        reward = self._pipes["target"].reward_model
        if reward is None:
            return None
        rate = frame_rate(self._pipes["target"])
        scores = score_clean(reward, latents, Conditioning(embeds.float(), prompts=tuple(texts), fps=rate)).cpu()
        return in_columns(scores, reward.axes)


def _thinned(
    pipe: Any, texts: list[str], seeds: Sequence[int], arguments: dict[str, Any], settings: Search
) -> SampledClips:
    candidates = [candidate_seeds(seed, settings.candidates) for seed in seeds]
    best = search(pipe, texts, settings, candidates, **arguments)
    return SampledClips(best.frames, best.latents, best.prompt_embeds)


class _Watch:
    """Measure wall-clock and processor time from its making on, and which share of it came after the last mark.

    Args:
        device: What the wall clock waits for in the end; steps do not wait, so on another than a CPU the share is 0.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()
        self._marked = self._start[1]

    def mark(self, *step: Any) -> dict[str, Any]:
        """Note the moment a step is over; takes and returns what a callback of a pipeline does."""
        self._marked = time.process_time()
        return {}

    def read(self) -> tuple[float, float, float]:
        """Return seconds, seconds of the processor and the share of the time since the last mark."""
        end = self._now()
        seconds, cpu_seconds = (after - before for after, before in zip(end, self._start, strict=True))
        share = (end[1] - self._marked) / cpu_seconds if cpu_seconds and self._device.type == "cpu" else 0.0
        return seconds, cpu_seconds, share

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()


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
