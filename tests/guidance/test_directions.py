"""What is done when axes disagree, each against a second way to the same answer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from nrg_sampler.flow import along_path, clean_from, noise_from
from nrg_sampler.guidance import directions

SHAPE = (4, 3, 2, 4, 4)


def batch(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slopes(direction: torch.Tensor, grads: torch.Tensor) -> torch.Tensor:
    """Change of each axis along a direction, (K, B)."""
    return (grads * direction).flatten(2).sum(dim=2)


def test_balanced_gradients_have_the_mean_of_the_norms():
    grads = batch(0, 3, *SHAPE) * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64).reshape(3, 1, 1, 1, 1, 1)
    result = directions.balanced(grads)
    norms = grads.flatten(2).norm(dim=2)
    torch.testing.assert_close(result.flatten(2).norm(dim=2), norms.mean(dim=0).expand(3, -1))
    cosine = torch.nn.functional.cosine_similarity(result.flatten(2), grads.flatten(2), dim=2)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_zero_gradient_stays_zero_when_balanced():
    grads = torch.stack([batch(0), torch.zeros(SHAPE, dtype=torch.float64)])
    assert torch.equal(directions.balanced(grads)[1], grads[1])


def test_conflicts_are_projected_as_in_the_paper_s_algorithm():
    grads = batch(1, 3, *SHAPE)
    grads[1] -= 0.7 * grads[0]
    result = directions.without_conflicts(grads)
    for sample in range(SHAPE[0]):
        plain = [grads[k, sample].numpy().ravel() for k in range(3)]
        for i in range(3):
            expected = plain[i].copy()
            for j in range(3):
                if i != j and expected @ plain[j] < 0:
                    expected -= (expected @ plain[j]) / (plain[j] @ plain[j]) * plain[j]
            np.testing.assert_allclose(result[i, sample].numpy().ravel(), expected, rtol=1e-10)


def test_two_projected_axes_are_both_left_no_lower():
    grads = batch(2, 2, *SHAPE)
    grads[1] -= 0.9 * grads[0]
    assert (slopes(grads.sum(dim=0), grads) < 0).any()
    assert (slopes(directions.without_conflicts(grads).sum(dim=0), grads) > -1e-9).all()


def test_axes_that_agree_are_left_alone():
    grads = batch(3, 1, *SHAPE).repeat(2, 1, 1, 1, 1, 1)
    assert torch.equal(directions.without_conflicts(grads), grads)


def test_the_floor_is_the_projection_onto_a_half_space():
    direction, floor = batch(4), batch(5)
    result, changed = directions.above_floor(direction, floor[None])
    for sample in range(SHAPE[0]):
        slope = (direction[sample] * floor[sample]).sum()
        expected = direction[sample] - slope.clamp(max=0) * floor[sample] / floor[sample].square().sum()
        torch.testing.assert_close(result[sample], expected)
        assert changed[sample] == (slope < 0)
    assert changed.any()
    assert not changed.all()


@pytest.mark.parametrize("correlation", [0.0, 0.8, -0.8])
def test_several_floors_give_the_closest_point_of_all_allowed_ones(correlation):
    """Against a search over which floors touch, each solved by least squares."""
    direction, floors = batch(6), batch(7, 3, *SHAPE)
    floors[1] += correlation * floors[0]
    floors[:2] -= 0.2 * direction
    result, changed = directions.above_floor(direction, floors)
    assert changed.any()
    for sample in range(SHAPE[0]):
        d, g = direction[sample].flatten(), floors[:, sample].flatten(1)
        candidates = []
        for active in (list(set_) for size in range(4) for set_ in combinations(range(3), size)):
            touching = g[active].T
            point = d - touching @ torch.linalg.lstsq(touching, d[:, None]).solution[:, 0] if active else d
            if (g @ point > -1e-9).all():
                candidates.append(point)
        closest = min(candidates, key=lambda point: (point - d).norm().item())
        torch.testing.assert_close(result[sample].flatten(), closest, rtol=1e-6, atol=1e-8)


def test_a_floor_without_a_gradient_changes_nothing():
    result, changed = directions.above_floor(batch(8), torch.zeros(1, *SHAPE, dtype=torch.float64))
    assert torch.equal(result, batch(8))
    assert not changed.any()


def test_a_floor_that_is_not_finite_spoils_its_own_sample_only():
    floors = batch(9, 1, *SHAPE)
    floors[0, 0, 0, 0, 0, 0] = torch.nan
    result, _ = directions.above_floor(batch(8), floors)
    assert result[0].isnan().any()
    assert result[1:].isfinite().all()


def test_the_parallel_part_is_scaled_and_the_rest_kept():
    direction, clean = batch(10), batch(11)
    flat, unit = direction.flatten(1), clean.flatten(1) / clean.flatten(1).norm(dim=1, keepdim=True)
    along = (flat * unit).sum(dim=1, keepdim=True) * unit
    for share in (0.0, 0.4, 1.0):
        torch.testing.assert_close(
            directions.less_parallel(direction, clean, share).flatten(1), flat - along + share * along
        )


def test_renoised_latents_keep_the_clean_prediction_and_the_noise_level():
    shape = (1, 4, 8, 32, 32)
    clean, noise, sigma, share = batch(12, *shape), batch(13, *shape), 0.6, 0.7
    latents, velocity = (1 - sigma) * clean + sigma * noise, noise - clean
    points = list(directions.renoised(latents, velocity, sigma, sigma, share, samples=4, seed=0))
    exchanged = [(point - (1 - sigma) * clean) / sigma for point in points]
    for fresh in exchanged:
        assert fresh.std().item() == pytest.approx(1, abs=0.02)
        correlation = (fresh * noise).mean().item() / (fresh.std() * noise.std()).item()
        assert correlation == pytest.approx((1 - share**2) ** 0.5, abs=0.02)
    torch.testing.assert_close(exchanged[0] + exchanged[1], 2 * (1 - share**2) ** 0.5 * noise)
    assert not torch.equal(points[0], points[2])
    again = directions.renoised(latents, velocity, sigma, sigma, share, samples=4, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(points, again, strict=True))


def test_renoised_latents_can_lie_further_along_the_path():
    latents, velocity, sigma = batch(14), batch(15), torch.rand(4, dtype=torch.float64)
    ahead = along_path(latents, velocity, sigma, 0.8 * sigma)
    torch.testing.assert_close(next(directions.renoised(latents, velocity, sigma, 0.8 * sigma, 0.0, 2, 0)), ahead)


def test_averaging_a_linear_gradient_over_noise_pairs_is_exact():
    """Of a quadratic reward the gradient is linear, so the average is the gradient at the mean of the points."""
    latents, velocity, sigma, share = batch(14), batch(15), torch.rand(4, dtype=torch.float64), 0.5
    points = list(directions.renoised(latents, velocity, sigma, sigma, share, samples=2, seed=3))
    shrunk = (1 - share**2) ** 0.5
    levels = sigma.reshape(-1, 1, 1, 1, 1)
    mean = (1 - levels) * clean_from(latents, velocity, sigma) + levels * shrunk * noise_from(latents, velocity, sigma)
    torch.testing.assert_close(sum(2 * (1.0 - point) for point in points) / 2, 2 * (1.0 - mean))
