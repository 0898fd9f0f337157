"""Count the operations and the memory of a call, also of one that runs with fake tensors and takes neither."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


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
        if tensor.device.type == "meta":  # where nothing takes memory
            return
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
