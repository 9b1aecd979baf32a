"""Gradient scaling per residual block: what lets a deep transformer train in float16 (arXiv 2102.12092, appendix D, figure 4).

The gradients of the blocks of a deep network differ by orders of magnitude, so that no one scale keeps all of them inside
float16. Here the stream and its gradient stay in float32, and each block's own path has a scale of its own: a gradient is
multiplied by it where it enters the path and divided by it where it leaves. bfloat16 has the range of float32 and needs none
of this.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

START, LOWEST, HIGHEST = 2.0**13, 2.0**7, 2.0**24  # times the number of replicas
GROWTH, SHRINKAGE = 2 ** (1 / 1000), 1 / math.sqrt(2)  # per good update; on a gradient that is not finite
PATIENCE = 125  # updates before a scale may shrink again


class _Enter(torch.autograd.Function):
    """Forward: the path's output in float32. Backward: the gradient times the scale, in the path's own precision."""

    @staticmethod
    def forward(context, output: Tensor, scale: float) -> Tensor:
        context.scale, context.dtype = scale, output.dtype
        return output.float()

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient * context.scale).to(context.dtype), None


class _Leave(torch.autograd.Function):
    """Forward: nothing. Backward: the gradient over the scale, in float32, 0 where it is not finite."""

    @staticmethod
    def forward(context, stream: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return stream.view_as(stream)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.nan_to_num(gradient.float() / context.scale, 0.0, 0.0, 0.0), None


class GradientScale(nn.Module):
    """The scale of one residual path; None (as made): no scaling, the tensors pass as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.value: float | None = None

    def of_input(self, stream: Tensor) -> Tensor:
        """What the path reads, on the way forward; what it gives back to the stream, on the way back."""
        return stream if self.value is None else _Leave.apply(stream, self.value)

    def of_output(self, output: Tensor) -> Tensor:
        """What the path adds to the stream, on the way forward; what it is told of the loss, on the way back."""
        return output if self.value is None else _Enter.apply(output, self.value)


@dataclass(frozen=True)
class ResidualPath:
    """One residual path of a model: its scale, and the parameters whose gradients carry that scale."""

    scale: GradientScale
    parameters: tuple[nn.Parameter, ...]


@dataclass
class GradientScales:
    """The scales of all residual paths, from one update to the next; `replicas` (M) is the number of processes."""

    paths: Sequence[ResidualPath]
    replicas: int = 1
    values: Tensor = field(init=False)  # (paths,) float64
    since: Tensor = field(init=False)  # (paths,) int64, updates since the scale last shrank

    def __post_init__(self) -> None:
        self.values = torch.full((len(self.paths),), START * self.replicas, dtype=torch.float64)
        self.since = torch.full((len(self.paths),), PATIENCE, dtype=torch.int64)

    def set(self) -> None:
        """Gives every path its scale, before the forward pass."""
        for path, value in zip(self.paths, self.values.tolist(), strict=True):
            path.scale.value = value

    def are_finite(self) -> Tensor:
        """Whether every gradient of each path is finite on this process: (paths,) bool."""
        return torch.tensor([all(_is_finite(one) for one in path.parameters) for path in self.paths])

    def unscale(self) -> None:
        """Takes the scales out of the gradients, after the backward pass."""
        for path, value in zip(self.paths, self.values.tolist(), strict=True):
            for parameter in path.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(value)

    def update(self, finite: Tensor) -> None:
        """Lets the scales of good paths grow, and those of others shrink, but not again within `PATIENCE` updates."""
        may_shrink = ~finite & (self.since >= PATIENCE)
        factors = torch.ones_like(self.values).masked_fill(finite, GROWTH).masked_fill(may_shrink, SHRINKAGE)
        self.values = (self.values * factors).clamp(LOWEST * self.replicas, HIGHEST * self.replicas)
        self.since = torch.where(may_shrink, 0, self.since + 1)

    def are_exhausted(self, finite: Tensor) -> bool:
        """Whether a path is not finite even at the lowest scale: then it is not the scale that is at fault."""
        return bool((~finite & (self.values <= LOWEST * self.replicas)).any())


def _is_finite(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    if gradient is None:
        return True
    local = gradient.to_local() if hasattr(gradient, "to_local") else gradient  # this process's part of a sharded one
    return bool(local.isfinite().all())
