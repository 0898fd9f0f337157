"""What a reward must not do while it is differentiated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nrg_sampler.rewards.gradient import axis_gradients, reward_gradient


class Reward:
    axes = ("light",)

    def __init__(self, change: Callable[[torch.Tensor], object]) -> None:
        self.change = change

    def __call__(self, latents: torch.Tensor, sigma: torch.Tensor, conditioning: object) -> torch.Tensor:
        self.change(latents)
        return latents.square().mean(dim=(1, 2, 3, 4))[:, None]


def scale_quietly(latents: torch.Tensor) -> None:
    with torch.no_grad():
        latents.mul_(2)


@pytest.mark.parametrize(
    "change",
    [lambda latents: latents.mul_(2), lambda latents: latents[:, :1].zero_(), scale_quietly],
    ids=["whole", "part", "without gradients"],
)
@pytest.mark.parametrize("gradient", [reward_gradient, axis_gradients])
def test_a_reward_that_changes_the_latents_is_refused(
    change: Callable[[torch.Tensor], object], gradient: Callable[..., object]
) -> None:
    latents = torch.ones(1, 2, 1, 2, 2)
    with pytest.raises(
        ValueError, match=r"Expected a reward that leaves the latents as they are, .* clone them first"
    ):
        gradient(latents, 0.5, Reward(change))
    assert torch.equal(latents, torch.ones(1, 2, 1, 2, 2))


def test_a_reward_may_change_a_clone() -> None:
    grad, _ = reward_gradient(torch.ones(1, 2, 1, 2, 2), 0.5, Reward(lambda latents: latents.clone().mul_(2)))
    torch.testing.assert_close(grad, torch.full((1, 2, 1, 2, 2), 0.25))


def test_another_error_of_the_reward_stays_its_own() -> None:
    def fail(latents: torch.Tensor) -> None:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        reward_gradient(torch.ones(1, 2, 1, 2, 2), 0.5, Reward(fail))
