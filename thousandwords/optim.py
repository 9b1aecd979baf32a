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


class Muon(torch.optim.Muon):
    """torch's Muon, whose arithmetic goes over all matrices of one shape at once; the same values, state and settings.

    A product of two matrices of 128 x 128 is too small to keep a core busy, let alone two.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for matrices in of_equal_shape(group["params"]):
                self._step_together(matrices, group)

    def _step_together(self, matrices: list[nn.Parameter], group: dict) -> None:
        gradients = [matrix.grad for matrix in matrices]
        momenta = [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        updates = orthogonal(torch.stack(list(directions)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * max(1, matrices[0].shape[0] / matrices[0].shape[1]) ** 0.5
        torch._foreach_add_(matrices, list(updates.float()), alpha=-rate)

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def of_equal_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Those that have a gradient, by shape and in their order: shapes 2x3, 3x2, 2x3 -> [[first, third], [second]]."""
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            found.setdefault(parameter.shape, []).append(parameter)
    return list(found.values())


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float) -> Tensor:
    """Roughly the nearest orthogonal matrices, by Newton-Schulz in bfloat16: (n, rows, columns) -> the same shape, bfloat16.

    Line by line torch.optim.Muon's, for n matrices in place of one.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = (matrices.mT if is_tall else matrices).to(torch.bfloat16, memory_format=torch.contiguous_format)
    found = found / torch.linalg.vector_norm(found, dim=(1, 2), keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if is_tall else found


def muon(matrices: Iterable[nn.Parameter], weight_decay: float, rate_factor: float) -> Muon:
    """Muon (orthogonalised momentum) over hidden matrices, at `rate_factor` times the rate of everything else.

    Not in the paper. AdamW lets the directions that many gradients share grow first; Muon gives the rare ones an equal
    step, and what a caption says of a picture is rare beside what pictures have in common.
    """
    group = {"params": list(matrices), "rate_factor": rate_factor}
    return Muon([group], lr=0.0, weight_decay=weight_decay, momentum=0.95, nesterov=True)


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
