"""Which frames VideoReward sees, and how they are cut into patches, against transformers."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler.rewards.named.preprocessing import CLIP_MEAN, CLIP_STD
from nrg_sampler.rewards.named.qwen_frames import frame_size, patchified


def test_frames_are_cut_as_transformers_cuts_a_picture():
    """Its processor repeats a picture to fill the pair of frames that a patch holds."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    frame = torch.randint(0, 256, (3, 56, 84), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = Qwen2VLImageProcessorPil()(images=[frame.numpy()], do_resize=False, return_tensors="pt")
    patches, grid = patchified(torch.stack([frame, frame]))
    torch.testing.assert_close(patches, theirs["pixel_values"], rtol=1e-5, atol=1e-5)
    assert list(grid) == theirs["image_grid_thw"][0].tolist()


def test_a_patch_holds_two_frames_in_their_order():
    frames = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 28, 28)
    patches, grid = patchified(frames)
    assert grid == (2, 2, 2)
    seen = patches.view(2, 4, 3, 2, 14, 14) * torch.tensor(CLIP_STD).view(3, 1, 1, 1) * 255
    seen = seen + torch.tensor(CLIP_MEAN).view(3, 1, 1, 1) * 255
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).view(2, 1, 1, 2, 1, 1).expand_as(seen)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(patchified(frames[:3])[0], patchified(frames[[0, 1, 2, 2]])[0])


@pytest.mark.parametrize("size", [(480, 832), (720, 1280), (64, 64), (300, 900)])
def test_frames_get_the_size_that_transformers_would_give(size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assert frame_size(*size, 200704) == smart_resize(*size, 28, 128 * 28 * 28, 200704)
