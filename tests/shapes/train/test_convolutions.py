"""Muon on kernels is Muon on matrices that share their memory."""

from __future__ import annotations

import copy

import torch
from torch import nn

from nrg_sampler.shapes.train.convolutions import ConvolutionMuon, new_optimizers


def model():
    torch.manual_seed(0)
    return nn.Conv3d(4, 6, 3)


def step(optimizer, layer):
    optimizer.zero_grad()
    layer(torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(0))).pow(2).mean().backward()
    optimizer.step()


def test_a_step_is_that_of_muon_on_the_flat_kernel():
    layer, same = model(), model()
    flat = nn.Parameter(same.weight.detach().clone().flatten(1))
    muon = torch.optim.Muon([flat], lr=0.01, weight_decay=0.01)
    own = ConvolutionMuon([layer.weight], lr=0.01, weight_decay=0.01)
    for _ in range(3):
        step(own, layer)
        same.weight.data = flat.detach().view_as(same.weight).clone()
        same.zero_grad()
        same(torch.randn(2, 4, 5, 5, 5, generator=torch.Generator().manual_seed(0))).pow(2).mean().backward()
        flat.grad = same.weight.grad.flatten(1)
        muon.step()
    assert torch.equal(layer.weight.flatten(1), flat)


def test_a_stored_optimiser_goes_on_the_same():
    layer = model()
    optimizer = ConvolutionMuon([layer.weight], lr=0.01)
    step(optimizer, layer)
    again = model()
    again.load_state_dict(layer.state_dict())
    resumed = ConvolutionMuon([again.weight], lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(optimizer, layer)
    step(resumed, again)
    assert torch.equal(layer.weight, again.weight)


def test_every_parameter_has_one_optimiser():
    layer = model()
    muon, adam = new_optimizers(layer, lr=0.01)
    assert [id(kernel) for kernel in muon.kernels] == [id(layer.weight)]
    assert [id(parameter) for group in adam.param_groups for parameter in group["params"]] == [id(layer.bias)]
