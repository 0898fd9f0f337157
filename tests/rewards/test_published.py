"""Reading published weights, of every format in which torch has written them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nrg_sampler.rewards.published import load_state

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch_are_read(tmp_path: Path, zipped: bool) -> None:
    torch.save(STATE, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(load_state(tmp_path / "a.pth"), STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.testing.assert_close(load_state(tmp_path / "a.safetensors"), STATE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_half_a_file_is_said_to_be_one(tmp_path: Path, zipped: bool, share: float) -> None:
    torch.save({"weight": torch.zeros(999)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"Expected weights in .*a.pth, but it cannot be read"):
        load_state(tmp_path / "a.pth")
