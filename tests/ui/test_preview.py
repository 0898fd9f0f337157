"""The picture that the page shows while a clip is sampled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import sample, schedulers

from nrg_sampler.ui.preview import Preview

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.mark.parametrize("solver", schedulers())
def test_every_solver_has_pictures(wan: Any, solver: str) -> None:
    """Heun comes to each sigma twice; a division by their difference made every picture NaN, and the run fail."""
    wan.scheduler = schedulers()[solver]
    preview, pictures = Preview(wan, 4), []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pictures.append(preview.picture(step, tensors["latents"]))
        return {}

    finished = sample(wan, callback_on_step_end=look)
    assert pictures[0] is None
    assert len(pictures) == (7 if solver == "heun" else 4)
    assert {picture.shape for picture in pictures[2:]} == {(16, 16, 3)}
    torch.testing.assert_close(torch.tensor(pictures[-1]), torch.tensor(preview._decode(finished[:1, :, :1])))


def test_a_solver_that_stays_at_one_sigma_has_no_picture_yet(wan: Any) -> None:
    wan.scheduler.set_timesteps(sigmas=[0.9, 0.9, 0.9])
    preview = Preview(wan, 3)
    latents = torch.zeros(1, 16, 2, 8, 8)
    assert [preview.picture(step, latents) for step in range(2)] == [None, None]
