"""Optimizers, the learning rate as a function of the step, and an exponential moving average of weights.

AdamW is torch's own, with the settings of the paper's two stages (arXiv 2102.12092, appendices A.2 and B.2).
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from thousandwords.nn.image_losses import kept_weights
from thousandwords.nn.schedules import cosine

# a fifth of what would move weights as far as AdamW does: one muon_lr_scale then suits matrices and kernels
KERNEL_LR_SCALE = 0.04**2


def parameter_groups(
    model: nn.Module, weight_decay: float, exclude: Iterable[nn.Parameter] = ()
) -> list[dict]:
    """Weight decay on matrices and kernels only, not on gains, biases and single vectors (paper, B.2)."""
    excluded = set(exclude)
    parameters = [each for each in model.parameters() if each.requires_grad and each not in excluded]
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def adamw(
    model: nn.Module,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    exclude: Iterable[nn.Parameter] = (),
    second_moment_clip: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`; `set_learning_rate` sets the rate before each step."""
    groups = [group for group in parameter_groups(model, weight_decay, exclude) if group["params"]]
    if second_moment_clip is not None:
        return ClippedAdamW(groups, (beta1, beta2), epsilon, second_moment_clip)
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=epsilon, fused=True)


class ClippedAdamW(torch.optim.Optimizer):
    """AdamW whose running variance is clipped by value (paper, appendix D), before its bias correction.

    torch's AdamW has no such option; a test holds the two equal where nothing is clipped.
    """

    def __init__(
        self, groups: list[dict], betas: tuple[float, float], epsilon: float, second_moment_clip: float
    ) -> None:
        defaults = {"lr": 0.0, "betas": betas, "eps": epsilon, "second_moment_clip": second_moment_clip}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)

    def _step_parameter(self, parameter: nn.Parameter, group: dict) -> None:
        state, gradient, (beta1, beta2) = self.state[parameter], parameter.grad, group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        mean, variance = state["exp_avg"].lerp_(gradient, 1 - beta1), state["exp_avg_sq"]
        variance.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        variance.clamp_(max=group["second_moment_clip"])
        deviation = (variance / (1 - beta2 ** state["step"].item())).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1 ** state["step"].item()))


class Muon(torch.optim.Optimizer):
    """Orthogonalized momentum (Jordan et al., 2024) for matrices, and for kernels as matrices (out, in * h * w).

    Not in the paper: rare directions get an equal step. A kernel's rate grows with the root of its longer
    side, so that the weights of all kernels move equally far (arXiv 2502.16982, section 2.2). Own code:
    torch's Muon takes no kernels and iterates one matrix after the other, in bfloat16 only: 16 to 24 times
    slower on a CPU without units for it.
    """

    def __init__(self, groups: list[dict], weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple, list[nn.Parameter]] = {}  # those of one shape are iterated together
            for parameter in group["params"]:
                if parameter.grad is not None:
                    key = (parameter.ndim, len(parameter), parameter[0].numel())
                    by_shape.setdefault(key, []).append(parameter)
            for (_, *shape), parameters in by_shape.items():
                self._step_same_shape(parameters, tuple(shape), group)

    def _step_same_shape(self, parameters: list[nn.Parameter], shape: tuple[int, int], group: dict) -> None:
        gradients = torch.stack([parameter.grad.reshape(shape) for parameter in parameters])
        momenta = torch.stack([self._momentum(parameter).reshape(shape) for parameter in parameters])
        momenta.lerp_(gradients, 1 - group["momentum"])
        updates = orthogonalize(gradients.lerp_(momenta, group["momentum"]), _iteration_dtype(parameters[0]))
        is_kernel = parameters[0].ndim > 2
        rate = (
            group["lr"] * (KERNEL_LR_SCALE * max(shape) if is_kernel else max(1, shape[0] / shape[1])) ** 0.5
        )
        for parameter, momentum, update in zip(parameters, momenta, updates, strict=True):
            self.state[parameter]["momentum_buffer"].copy_(momentum.reshape(parameter.shape))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (N, A, B) with all singular values near 1, by five Newton-Schulz iterations in that dtype."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if is_tall else matrices).to(dtype)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.baddbmm(wide, polynomial, wide, beta=3.4445)
    return (wide.mT if is_tall else wide).to(matrices.dtype)


def _iteration_dtype(parameter: Tensor) -> torch.dtype:
    """bfloat16, as in torch; on a CPU float32 for small kernels (up to four times faster) and without units."""
    if parameter.device.type != "cpu":
        return torch.bfloat16
    is_small_kernel = parameter.ndim > 2 and parameter.numel() < 2**16
    return torch.float32 if is_small_kernel or not has_bfloat16_units("cpu") else torch.bfloat16


def has_bfloat16_units(device: str) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32 there.

    On an Intel CPU with AVX-512's bfloat16 instructions but without AMX they are not: an update of the dVAE took 1.25
    times, of the U-Net 1.45 times and of the transformer 1.3 times as long.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    has_capabilities = hasattr(torch.cpu, "get_capabilities")  # torch 2.11 does not have it
    capabilities = torch.cpu.get_capabilities() if has_capabilities else {}
    is_intel = str(capabilities.get("cpu_name")).startswith("Intel")
    return bool(capabilities.get("amx_bf16") or (capabilities.get("avx512_bf16") and not is_intel))


def learning_rate(step: int, peak: float, final: float, warmup_steps: int, steps: int) -> float:
    """Linear warm-up to `peak` over `warmup_steps`, then a cosine that reaches `final` after `steps` updates."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(step - warmup_steps, peak, final, max(1, steps - warmup_steps))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every parameter group, times its own `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class MovingAverage:
    """An exponential moving average of a model's weights that are kept.

    With `has_warmup` the decay starts low, min(decay, (1 + n) / (10 + n)) after n updates. Of torch's
    `swa_utils` the function is used; its `AveragedModel` copies the whole model, not the weights of this
    process only, and takes the first update as it is, which would change every short training.
    """

    def __init__(self, model: nn.Module, decay: float, has_warmup: bool = False) -> None:
        self.decay, self.has_warmup, self.updates = decay, has_warmup, 0
        self.state = {name: tensor.detach().clone() for name, tensor in kept_weights(model).items()}

    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights; integer tensors (counters, tables) are copied."""
        decay = self.decay
        if self.has_warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = kept_weights(model)
        floats = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        averages = [self.state[name] for name in floats]
        get_ema_multi_avg_fn(decay)(averages, [weights[name] for name in floats], None)
        for name in weights.keys() - set(floats):
            self.state[name].copy_(weights[name])
