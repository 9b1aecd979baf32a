"""Parameter groups, the learning rate as a function of the step, and an exponential moving average of weights.

AdamW as both stages of the paper use it (arXiv 2102.12092, appendices A.2 and B.2); torch's own AdamW does the arithmetic.
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from thousandwords.schedules import cosine


def parameter_groups(model: nn.Module, weight_decay: float, without: Iterable[nn.Parameter] = ()) -> list[dict]:
    """Weight decay on matrices and kernels only: gains, biases and single vectors are left alone (paper, B.2)."""
    elsewhere = {id(parameter) for parameter in without}
    trained = [one for one in model.parameters() if one.requires_grad and id(one) not in elsewhere]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    without: Iterable[nn.Parameter] = (),
    variance_limit: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`; `set_learning_rate` gives the rate before each step."""
    groups = [group for group in parameter_groups(model, weight_decay, without) if group["params"]]
    if variance_limit is not None:
        return LimitedAdamW(groups, (beta1, beta2), epsilon, variance_limit)
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


class LimitedAdamW(torch.optim.Optimizer):
    """AdamW whose running variance is clipped by value where it is used, for parameters and for itself (paper, appendix D).

    Written out, since torch's AdamW has no such place; a test holds the two equal where nothing is clipped. The paper does not
    say whether the limit is put on the variance before or after its bias is corrected: before, here.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], epsilon: float, variance_limit: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": epsilon, "variance_limit": variance_limit})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)

    def _step_one(self, parameter: nn.Parameter, group: dict) -> None:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mean, variance = state["exp_avg"].lerp_(gradient, 1 - beta1), state["exp_avg_sq"]
        variance.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2).clamp_(max=group["variance_limit"])
        unbiased = variance / (1 - beta2 ** state["step"].item())
        parameter.addcdiv_(mean, unbiased.sqrt_().add_(group["eps"]), value=-group["lr"] / (1 - beta1 ** state["step"].item()))


KERNEL_RATE = 0.04**2  # a fifth of what would move weights as far as AdamW does: so one factor suits matrices and kernels


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum over hidden matrices (Jordan et al., 2024), as torch's Muon does it, and over kernels.

    A kernel (out, in, h, w) counts as a matrix (out, in * h * w), whose rate grows with the root of its longer side, so that
    all kernels' weights move alike (arXiv 2502.16982, section 2.2). Matrices of one shape take their iterations together, which
    saves most of the time of many small ones. A parameter without a gradient is left alone.
    """

    def __init__(self, groups: list[dict], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.ndim, len(parameter), parameter[0].numel()), []).append(parameter)
            for (_, *shape), parameters in alike.items():
                self._step_alike(parameters, tuple(shape), group)

    def _step_alike(self, parameters: list[nn.Parameter], shape: tuple[int, int], group: dict) -> None:
        gradients = torch.stack([parameter.grad.reshape(shape) for parameter in parameters])
        momenta = torch.stack([self._momentum(parameter).reshape(shape) for parameter in parameters])
        momenta.lerp_(gradients, 1 - group["momentum"])
        updates = orthogonalised(gradients.lerp_(momenta, group["momentum"]), _iteration_type(parameters[0]))
        rate = group["lr"] * (KERNEL_RATE * max(shape) if parameters[0].ndim > 2 else max(1, shape[0] / shape[1])) ** 0.5
        for parameter, momentum, update in zip(parameters, momenta, updates, strict=True):
            self.state[parameter]["momentum_buffer"].copy_(momentum.reshape(parameter.shape))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(matrices: Tensor, inside: torch.dtype) -> Tensor:
    """Matrices (N, A, B) with all singular values near 1, by five Newton-Schulz iterations in that type."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if is_tall else matrices).to(inside)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.baddbmm(wide, polynomial, wide, beta=3.4445)
    return (wide.mT if is_tall else wide).to(matrices.dtype)


def _iteration_type(parameter: Tensor) -> torch.dtype:
    """bfloat16 as torch has it; but float32 for small kernels on a CPU, where bfloat16 takes up to four times as long."""
    is_small_kernel = parameter.ndim > 2 and parameter.device.type == "cpu" and parameter.numel() < 2**16
    return torch.float32 if is_small_kernel else torch.bfloat16


def muon(matrices: Iterable[nn.Parameter], weight_decay: float, rate_factor: float) -> Muon:
    """`Muon` over hidden matrices and kernels, at `rate_factor` times the rate of everything else.

    Not in the paper. AdamW lets the directions that many gradients share grow first; Muon gives the rare ones an equal
    step, and what a caption says of a picture is rare beside what pictures have in common.
    """
    return Muon([{"params": list(matrices), "rate_factor": rate_factor}], weight_decay)


def learning_rate(step: int, peak: float, final: float, warmup_steps: int, steps: int) -> float:
    """Linear warm-up to `peak` over `warmup_steps`, then a cosine that reaches `final` after all `steps` updates.

    The first update (step 0) of a warm-up of 4 has a quarter of the peak: no update is wasted on a rate of zero.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(step - warmup_steps, peak, final, max(1, steps - warmup_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the same rate, times its own `rate_factor` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scales gradients so that their norm is at most `limit` (None: only measures); returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), float("inf") if limit is None else limit)


class MovingAverage:
    """An exponential moving average of a model's weights; its `state` loads into the model as it is.

    With `is_warmed_up` the decay starts low, min(decay, (1 + n) / (10 + n)) after n updates, so that a short training is not
    weighed down by its first weights. The paper's runs are long enough to do without.
    """

    def __init__(self, model: nn.Module, decay: float, is_warmed_up: bool = False) -> None:
        self.decay, self.is_warmed_up, self.updates = decay, is_warmed_up, 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the weights; what is not floating point (counters, tables) is copied."""
        decay = self.decay
        if self.is_warmed_up:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        now = model.state_dict()
        moved = [name for name, tensor in now.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in moved], [now[name] for name in moved], 1 - decay)
        for name in now.keys() - set(moved):
            self.state[name].copy_(now[name])
