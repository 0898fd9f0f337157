"""Muon for the kernels of convolutions, which torch has for matrices only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class ConvolutionMuon(torch.optim.Muon):
    """Muon (Jordan et al., 2024) for kernels, each seen as a matrix of output channels by everything else.

    The matrices share the kernels' memory, so a step on them is a step on the kernels.

    Args:
        kernels: Parameters of two or more dimensions.
        options: As ``torch.optim.Muon`` takes them.
    """

    def __init__(self, kernels: Iterable[nn.Parameter], **options: Any) -> None:
        """Make a matrix of each kernel."""
        self.kernels = list(kernels)
        super().__init__([nn.Parameter(kernel.detach().flatten(1)) for kernel in self.kernels], **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take a step with the gradients of the kernels."""
        matrices = [matrix for group in self.param_groups for matrix in group["params"]]
        for matrix, kernel in zip(matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        loss: Tensor | None = super().step(closure)  # type: ignore[no-untyped-call]
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of the kernels."""
        super().zero_grad(set_to_none)
        for kernel in self.kernels:
            kernel.grad = None


def new_optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the kernels of a convolutional model, AdamW for its biases and norms."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim >= 4]
    rest = [parameter for parameter in model.parameters() if parameter.ndim < 4]
    return [
        ConvolutionMuon(kernels, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=1e-4),
    ]
