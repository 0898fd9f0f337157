"""Where a run computes, and in which precision that is fast there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nrg_sampler.checkpoints import BUNDLED

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")  # of weights
AUTO = "auto"
ARITHMETIC = (AUTO, "float32", "bfloat16")  # of the arithmetic under autocast

# Processor features that multiply bfloat16 matrices, as torch.cpu names them: AVX512-BF16 and AMX.
NATIVE_BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
# Limits of oneDNN, which computes the matrix products, that exclude both.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def default_device() -> str:
    """Return ``"cuda"`` if there is one, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> str:
    """Return ``device``.

    Raises:
        ValueError: If it is absent.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an absent CUDA is an AssertionError
        raise ValueError(f"Expected a device that is present, but got {device!r}; try --device cpu.") from error
    return device


def weights_dtype(model: str, device: str) -> str:
    """Name the dtype that the weights of a model are loaded in: bfloat16 on CUDA, save for the small bundled model.

    Args:
        model: ``"shapes"``, a folder or a Hub id.
        device: A torch device.
    """
    return "bfloat16" if device.startswith("cuda") and model != BUNDLED else "float32"


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """Choose the precision of the arithmetic under autocast that is fast on a device.

    bfloat16 where a CUDA device or an x86 processor multiplies it natively; elsewhere it is emulated, several times
    slower than float32, or its speed is not known. Nothing is timed: on one machine the choice is always the same.

    Args:
        device: A torch device that is present.

    Returns:
        ``torch.bfloat16`` or ``torch.float32``.
    """
    import torch

    device = torch.device(device)
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        native = torch.backends.mkldnn.is_available() and _multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def fast_autocast(device: torch.device | str) -> torch.autocast:
    """Return a context that computes in bfloat16 where that is fast, and in the dtype of the weights elsewhere."""
    import torch

    enabled = fast_dtype(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def dtype_name(wanted: str, device: str) -> str:
    """Return ``wanted``, or for ``"auto"`` the name of :func:`fast_dtype`.

    Args:
        wanted: One of ``ARITHMETIC``.
        device: A torch device that is present.

    Raises:
        ValueError: If there is no such choice.
    """
    if wanted not in ARITHMETIC:
        raise ValueError(f"Expected a dtype from {', '.join(ARITHMETIC)}, but got {wanted!r}.")
    return str(fast_dtype(device)).removeprefix("torch.") if wanted == AUTO else wanted


def dtype_reason(device: str) -> str:
    """Return a sentence on what :func:`fast_dtype` chooses and why, for the user of a command."""
    name = dtype_name(AUTO, device)
    why = "which multiplies it natively" if name == "bfloat16" else "which has no fast bfloat16"
    return f"dtype auto is {name} on {device}, {why}."


def _multiplies_bfloat16() -> bool:
    """Whether this process multiplies bfloat16 matrices by instructions of the processor."""
    import torch

    limits = [os.environ[name].upper() for name in ISA_LIMITS if name in os.environ]
    if limits and limits[0] in WITHOUT_BFLOAT16:  # the older name counts where the newer one is not set
        return False
    # The names are private: a release of torch without them gets float32, which is nowhere slow by much.
    return any(getattr(torch.cpu, name, lambda: False)() for name in NATIVE_BFLOAT16)
