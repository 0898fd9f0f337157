"""Which arithmetic is fast on a device."""

from __future__ import annotations

import torch


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """Return bfloat16 where the device computes in it natively, else float32.

    A processor without AVX-512 or AMX emulates bfloat16 and takes several times as long as in float32.

    Args:
        device: A torch device; one that is neither a processor nor a CUDA device gets float32.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = kind == "cpu" and torch.backends.mkldnn.is_available() and _has_bfloat16_kernels()
    return torch.bfloat16 if native else torch.float32


def fast_autocast(device: torch.device | str) -> torch.autocast:
    """Return a context that computes in bfloat16 where that is fast, and in the dtype of the weights elsewhere."""
    enabled = fast_dtype(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def _has_bfloat16_kernels() -> bool:
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported
