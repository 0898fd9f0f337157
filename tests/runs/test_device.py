from __future__ import annotations

import pytest
import torch

from nrg_sampler.runs import device


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Set what the processor offers and which limit oneDNN has."""

    def make(avx512_bf16: bool = False, amx: bool = False, **limits: str) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        for name in device.ISA_LIMITS:
            monkeypatch.delenv(name, raising=False)
        for name, value in limits.items():
            monkeypatch.setenv(name, value)

    return make


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx": True}, torch.bfloat16),
        ({"avx512_bf16": True, "ONEDNN_MAX_CPU_ISA": "AVX2"}, torch.float32),
        ({"avx512_bf16": True, "ONEDNN_MAX_CPU_ISA": "avx512_core"}, torch.float32),
        ({"amx": True, "DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, torch.float32),
        ({"avx512_bf16": True, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, torch.bfloat16),
        ({"avx512_bf16": True, "ONEDNN_MAX_CPU_ISA": "DEFAULT", "DNNL_MAX_CPU_ISA": "AVX2"}, torch.bfloat16),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_multiplies_it_natively(processor, offered, expected) -> None:
    processor(**offered)
    assert device.fast_dtype("cpu") == expected
    assert device.dtype_name("auto", "cpu") == str(expected).removeprefix("torch.")
    with device.fast_autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert device.dtype_reason("cpu").startswith(f"dtype auto is {device.dtype_name('auto', 'cpu')} on cpu")


def test_a_torch_that_does_not_tell_what_the_processor_offers_gets_float32(processor, monkeypatch) -> None:
    processor(avx512_bf16=True)
    for name in device.NATIVE_BFLOAT16:
        monkeypatch.delattr(torch.cpu, name)
    assert device.fast_dtype("cpu") == torch.float32


def test_a_build_without_onednn_gets_float32(processor, monkeypatch) -> None:
    processor(avx512_bf16=True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert device.fast_dtype("cpu") == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_older_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch, native, dtype) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert device.fast_dtype("cuda:1") == dtype


def test_other_devices_compute_in_float32() -> None:
    assert device.fast_dtype("mps") == torch.float32


def test_a_dtype_that_is_named_stays(processor) -> None:
    processor(avx512_bf16=True)
    assert device.dtype_name("float32", "cpu") == "float32"
    with pytest.raises(ValueError, match="Expected a dtype from auto, float32, bfloat16, but got 'float64'"):
        device.dtype_name("float64", "cpu")


def test_weights_are_half_as_long_on_cuda_save_for_the_bundled_model() -> None:
    assert device.weights_dtype("shapes", "cuda:0") == device.weights_dtype("Wan-AI/x", "cpu") == "float32"
    assert device.weights_dtype("Wan-AI/x", "cuda") == "bfloat16"


def test_an_absent_device_is_refused() -> None:
    assert device.require_device("cpu") == "cpu"
    absent = "cpu:x" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match="Expected a device that is present"):
        device.require_device(absent)
