"""Gradient scaling per residual block, for a deep transformer in float16 (arXiv 2102.12092, appendix D, figure 4).

No single scale keeps the gradients of all blocks in the range of float16. Here the residual stream and its
gradient stay in float32, and each residual path has its own scale: a gradient is multiplied by it on entering
the path and divided by it on leaving. bfloat16 needs no scaling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

INITIAL_SCALE, MIN_SCALE, MAX_SCALE = 2.0**13, 2.0**7, 2.0**24  # times the number of replicas
GROWTH, SHRINKAGE = 2 ** (1 / 1000), 1 / math.sqrt(2)  # per update with finite gradients; per update without
SHRINK_INTERVAL = 125  # updates before a scale may shrink again


class _ScaleGrad(torch.autograd.Function):
    """Forward: the path's output as float32. Backward: the gradient times the scale, in the path's dtype."""

    @staticmethod
    def forward(ctx, output: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.dtype = scale, output.dtype
        return output.float()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * ctx.scale).to(ctx.dtype), None


class _UnscaleGrad(torch.autograd.Function):
    """Forward: identity. Backward: the gradient over the scale, in float32, 0 where it is not finite."""

    @staticmethod
    def forward(ctx, hidden_states: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return torch.nan_to_num(grad.float() / ctx.scale, 0.0, 0.0, 0.0), None


class GradientScale(nn.Module):
    """The scale of one residual path; None (the default): no scaling, tensors pass unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.value: float | None = None

    def unscale_grad(self, hidden_states: Tensor) -> Tensor:
        """The input of the path, unchanged; its gradient is divided by the scale in the backward pass."""
        return hidden_states if self.value is None else _UnscaleGrad.apply(hidden_states, self.value)

    def scale_grad(self, output: Tensor) -> Tensor:
        """The output of the path as float32; its gradient is multiplied by the scale in the backward pass."""
        return output if self.value is None else _ScaleGrad.apply(output, self.value)


@dataclass(frozen=True)
class ResidualPath:
    """One residual path of a model: its scale, and the parameters whose gradients are multiplied by it."""

    scale: GradientScale
    parameters: tuple[nn.Parameter, ...]


@dataclass
class GradientScales:
    """The scales of all residual paths and their updates; `replicas` (M) is the number of processes."""

    paths: Sequence[ResidualPath]
    replicas: int = 1
    values: Tensor = field(init=False)  # (paths,) float64
    updates_since_shrink: Tensor = field(init=False)  # (paths,) int64

    def __post_init__(self) -> None:
        self.values = torch.full((len(self.paths),), INITIAL_SCALE * self.replicas, dtype=torch.float64)
        self.updates_since_shrink = torch.full((len(self.paths),), SHRINK_INTERVAL, dtype=torch.int64)

    def set(self) -> None:
        """Give every path its scale; called before the forward pass."""
        for path, value in zip(self.paths, self.values.tolist(), strict=True):
            path.scale.value = value

    def are_finite(self) -> Tensor:
        """Whether every gradient of each path is finite on this process: (paths,) bool."""
        return torch.tensor([all(map(_is_finite, path.parameters)) for path in self.paths])

    def unscale(self) -> None:
        """Divide the gradients by their scales; called after the backward pass."""
        for path, value in zip(self.paths, self.values.tolist(), strict=True):
            for parameter in path.parameters:
                if parameter.grad is not None:
                    parameter.grad.div_(value)

    def update(self, finite: Tensor) -> None:
        """Increase scales of finite paths; decrease others, at most once in `SHRINK_INTERVAL` updates."""
        may_shrink = ~finite & (self.updates_since_shrink >= SHRINK_INTERVAL)
        factors = torch.ones_like(self.values).masked_fill(finite, GROWTH).masked_fill(may_shrink, SHRINKAGE)
        self.values = (self.values * factors).clamp(MIN_SCALE * self.replicas, MAX_SCALE * self.replicas)
        self.updates_since_shrink = torch.where(may_shrink, 0, self.updates_since_shrink + 1)

    def are_exhausted(self, finite: Tensor) -> bool:
        """Whether a path is not finite even at the lowest scale: then the scale is not the cause."""
        return bool((~finite & (self.values <= MIN_SCALE * self.replicas)).any())


def _is_finite(parameter: nn.Parameter) -> bool:
    grad = parameter.grad
    if grad is None:
        return True
    local = grad.to_local() if hasattr(grad, "to_local") else grad  # the part of this process, if sharded
    return bool(local.isfinite().all())
