"""The learning-rate schedule against that of diffusers."""

from __future__ import annotations

import pytest
import torch

from nrg_sampler.training.schedule import warmup_cosine


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_schedule_is_that_of_diffusers(warmup):
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, 30)
    for step in range(31):
        assert warmup_cosine(step, warmup, 30) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


def test_the_first_step_of_a_warmup_may_count():
    assert [warmup_cosine(step, 4, 8, first=1) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert warmup_cosine(8, 4, 8, first=1) == 0
