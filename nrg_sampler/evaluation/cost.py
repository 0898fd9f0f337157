"""What guidance costs: time, counted operations and memory of a guided step over an unguided one."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from nrg_sampler.evaluation.workloads import Workload, block_costs, predicted_ratio
from nrg_sampler.guidance import guided_velocity
from nrg_sampler.rewards.base import Conditioning, Reward
from nrg_sampler.shared import SharedReward, following
from nrg_sampler.trace import GuidanceTrace

SIGMA = 0.5  # cost does not depend on it
CFG = 5.0
WARMUP = 2
TIMED_ON_CPU = 1e11  # operations of an unguided step above which a processor would take minutes a step
MIB = 2**20


@dataclass(frozen=True)
class CostRow:
    """Cost of one configuration.

    Args:
        config: Name of the workload.
        mode: ``"separate"``: the reward runs its own forward pass; ``"shared"``: it reads the denoiser's features.
        every: Each n-th step is guided.
        blocks: Transformer blocks in the reward.
        k_time: Measured time over that of an unguided run; ``None`` where nothing was timed.
        k_flops: The same for counted operations.
        k_predicted: The same by formula, see ``predicted_ratio``.
        peak_memory_mib: Highest memory of a guided step, weights of transformer and reward included.
        unguided_memory_mib: The same without guidance.
        memory: ``"measured"`` by the device, or ``"counted"`` from the tensors alive at any moment.
        checkpointing: Whether the reward computes its activations twice rather than keeping them.
        n: Timed pairs of an unguided and a guided step.
        device: Where it was timed.
    """

    config: str
    mode: str
    every: int
    blocks: int
    k_time: float | None
    k_flops: float
    k_predicted: float
    peak_memory_mib: float
    unguided_memory_mib: float
    memory: str
    checkpointing: bool
    n: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _BeyondTheLeaf:
    """A reward that is handed a copy of the latents: the operation counter cannot follow a leaf into a module."""

    def __init__(self, reward: Reward) -> None:
        self.axes, self._reward = reward.axes, reward

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return self._reward(latents.clone(), sigma, conditioning)


class Step:
    """One denoising step of a workload, without and with guidance.

    Args:
        workload: What is computed.
        num_blocks: Blocks in the reward.
        checkpointing: Whether the reward saves memory by computing activations twice.
        device: Where the weights are.
        dtype: Of the weights and latents.
        shared: Whether the reward reads the transformer's features instead of running a forward pass of its own.
    """

    def __init__(
        self,
        workload: Workload,
        num_blocks: int,
        checkpointing: bool,
        device: str,
        dtype: torch.dtype,
        shared: bool = False,
    ) -> None:
        with _default_dtype(dtype), torch.device(device):
            self.workload, self.shared = workload, shared
            self.transformer: Any = workload.build()
            self.reward: Any = workload.build_reward(num_blocks)
            self.latents, self.prompt = workload.random_inputs(device, dtype)
        if checkpointing:
            self.reward.enable_gradient_checkpointing()
        self.modules: tuple[torch.nn.Module, ...] = (self.transformer, self.reward)

    def velocity(self) -> Tensor:
        """Evaluate the transformer as often as an unguided step does."""
        with torch.no_grad():
            inputs = self.workload.inputs(self.latents, self.prompt)
            outputs: list[Tensor] = [self.transformer(**inputs)[0] for _ in range(self.workload.evaluations)]
        return outputs[0] if len(outputs) == 1 else outputs[1] + CFG * (outputs[0] - outputs[1])

    def unguided(self) -> Tensor:
        return self.latents - 0.02 * self.velocity()

    def guided(self) -> Tensor:
        if not self.shared:
            return self._guided_by(_BeyondTheLeaf(self.reward))
        with following(self.transformer, SharedReward(self.reward)) as reward:
            return self._guided_by(reward)

    def _guided_by(self, reward: Any) -> Tensor:
        trace = GuidanceTrace(self.reward.axes)  # keeps the numbers on the device, as a sampled run does
        velocity = guided_velocity(
            self.latents, self.velocity(), SIGMA, reward, Conditioning(self.prompt), trace=trace
        )
        return self.latents - 0.02 * velocity


@dataclass(frozen=True)
class Counted:
    """Operations and the highest memory, in bytes, of a call."""

    flops: int
    peak_bytes: int


class MemoryCounter(TorchDispatchMode):
    """Follow the storage of every tensor that an operation returns, from its birth to its end.

    Counts what the tensors of the program hold, on any device and for fake tensors too; scratch space inside a kernel
    is not seen.

    Args:
        modules: Their weights count from the start.
    """

    def __init__(self, modules: Iterable[torch.nn.Module] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: dict[int, Any] = {}
        self._bytes = self.peak_bytes = 0
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        self._bytes -= size
        self._alive.pop(key, None)


def count(call: Callable[[], Any], modules: Iterable[torch.nn.Module]) -> Counted:
    """Run ``call`` twice, to count its operations and its memory: the operation counter keeps tensors alive."""
    flops = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with flops:
        call()
    with MemoryCounter(modules) as memory:
        call()
    return Counted(flops.get_total_flops(), memory.peak_bytes)


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


# The counter knows the fused attention of accelerators; this is the processor's, which fake tensors go through.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_step(
    workload: Workload, num_blocks: int, checkpointing: bool, dtype: torch.dtype, shared: bool = False
) -> tuple[Counted, Counted, float]:
    """Count an unguided and a guided step at full size with fake tensors, which take no memory and no time.

    Returns:
        What the unguided and the guided step take, and the predicted ratio of their operations.
    """
    # Entered while building only: what `guided_velocity` makes of plain numbers has to stay real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = Step(workload, num_blocks, checkpointing, "cpu", dtype, shared)
    unguided, guided = count(step.unguided, step.modules[:1]), count(step.guided, step.modules)
    costs = block_costs(step.transformer, workload.tokens)
    predicted = predicted_ratio(
        costs, num_blocks, workload.evaluations, shared=shared, checkpointing=checkpointing and not shared
    )
    return unguided, guided, predicted


def time_step(step: Step, n: int, device: torch.device) -> tuple[float, float]:
    """Return the median seconds of an unguided and a guided step, timed in turn ``n`` times."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARMUP + n):
        for call, timed in zip((step.unguided, step.guided), seconds, strict=True):
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if turn >= WARMUP:
                timed.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def cost_rows(
    workload: Workload,
    num_blocks: int | None = None,
    *,
    mode: str = "separate",
    every: Iterable[int] = (1, 2),
    checkpointing: bool = False,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    n: int = 20,
) -> Iterator[CostRow]:
    """Yield one row for each number in ``every``.

    Operations and memory are counted at full size. On a CUDA device with room for it, and on the processor for
    workloads that take less than seconds, steps are timed as well and memory is measured where the device can tell.

    Args:
        workload: What is computed.
        num_blocks: Blocks in the reward; a quarter of the transformer's by default.
        mode: ``"separate"``, or ``"shared"`` where the reward reads the transformer's own features.
        every: Each n-th step guided; the unguided steps between are counted at their own cost.
        checkpointing: Whether the reward computes its activations twice rather than keeping them.
        device: Where to time.
        dtype: Of the weights.
        n: Timed pairs.

    Raises:
        ValueError: If the transformer has fewer blocks, or its features cannot be shared.
    """
    shared = mode == "shared"
    if shared and (checkpointing or workload.transformer != "WanTransformer3DModel"):
        raise ValueError(
            f"Expected mode 'separate' for {workload.name}{' with checkpointing' * checkpointing}, but got 'shared': "
            "features are shared with Wan transformers, whose activations are kept."
        )
    total = sum(workload.config.get(name, 0) for name in ("num_layers", "num_single_layers"))
    blocks = round(total / 4) if num_blocks is None else num_blocks
    if not 1 <= blocks <= total:
        raise ValueError(f"Expected a reward of 1 to {total} blocks for {workload.name}, but got {blocks}.")
    unguided, guided, predicted = count_step(workload, blocks, checkpointing, dtype, shared)
    flops = guided.flops / unguided.flops
    measured = None
    if n and _can_time(torch.device(device), unguided.flops, guided.peak_bytes):
        measured = _measure(Step(workload, blocks, checkpointing, device, dtype, shared), n, torch.device(device))
    for gap in every:
        ratio = None if measured is None else measured.guided_seconds / measured.unguided_seconds
        on_device = measured is not None and measured.peaks is not None
        peaks = measured.peaks if measured is not None and measured.peaks else (unguided.peak_bytes, guided.peak_bytes)
        yield CostRow(
            config=workload.name,
            mode=mode,
            every=gap,
            blocks=blocks,
            k_time=None if ratio is None else round(1 + (ratio - 1) / gap, 3),
            k_flops=round(1 + (flops - 1) / gap, 3),
            k_predicted=round(1 + (predicted - 1) / gap, 3),
            peak_memory_mib=round(peaks[1] / MIB, 1),
            unguided_memory_mib=round(peaks[0] / MIB, 1),
            memory="measured" if on_device else "counted",
            checkpointing=checkpointing,
            n=0 if measured is None else n,
            device=device if measured is not None else "none",
        )


@dataclass(frozen=True)
class Measured:
    """Median seconds, and the device's own peak of both steps in bytes if it keeps one."""

    unguided_seconds: float
    guided_seconds: float
    peaks: tuple[int, int] | None


def _measure(step: Step, n: int, device: torch.device) -> Measured:
    unguided, guided = time_step(step, n, device)
    if device.type != "cuda":
        return Measured(unguided, guided, None)
    peaks = []
    for call in (step.unguided, step.guided):
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peaks.append(torch.cuda.max_memory_allocated(device))
    return Measured(unguided, guided, (peaks[0], peaks[1]))


def _can_time(device: torch.device, flops: int, peak_bytes: int) -> bool:
    if device.type == "cuda":
        return peak_bytes < 0.9 * torch.cuda.get_device_properties(device).total_memory
    return flops < TIMED_ON_CPU


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
