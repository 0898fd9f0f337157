"""Arithmetic is in bfloat16 where the device has it, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler.runs import device


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_computes_in_what_it_has_kernels_for(monkeypatch, native, dtype):
    monkeypatch.setattr(device, "_has_bfloat16_kernels", lambda: native)
    assert device.fast_dtype("cpu") == device.fast_dtype(torch.device("cpu")) == dtype
    with device.fast_autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_an_older_gpu_that_only_emulates_bfloat16_computes_in_float32(monkeypatch, native, dtype):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    assert device.fast_dtype("cuda:1") == dtype


def test_other_devices_compute_in_float32():
    assert device.fast_dtype("mps") == torch.float32


def test_the_kernels_of_this_processor_are_known():
    assert device._has_bfloat16_kernels() in (True, False)
