"""The update rules on torch, in place.

`update_rules` has the equations. Written with Keras's operations every part of them
makes a new array, and a step takes up to three times as long.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def momentum_sgd(
    weight: "torch.Tensor",
    trace: "torch.Tensor",
    gradient: "torch.Tensor",
    rate: "torch.Tensor",
    *,
    momentum: float,
) -> None:
    """Make the step of `MomentumSGD` with the learning rate `rate`, a scalar tensor."""
    import torch

    with torch.no_grad():
        trace.mul_(momentum).add_(gradient)
        weight.addcmul_(trace, rate, value=-1)


def kernel_adamw(
    weight: "torch.Tensor",
    mean: "torch.Tensor",
    square: "torch.Tensor",
    gradient: "torch.Tensor",
    rate: "torch.Tensor",
    t: "torch.Tensor",
    *,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> None:
    """Make the step `t`, a scalar tensor from 1, of `KernelAdamW`."""
    import torch

    with torch.no_grad():
        mean.lerp_(gradient, 1 - betas[0])
        square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        root = square.sqrt().div_((1 - betas[1] ** t).sqrt()).add_(epsilon)
        step = torch.div(mean, root, out=root)
        if decay:
            weight.mul_(1 - rate * decay)
        weight.addcmul_(step, rate / (1 - betas[0] ** t), value=-1)


def move_average(
    average: "torch.Tensor", weight: "torch.Tensor", kept: "torch.Tensor"
) -> None:
    """Set `average = kept * average + (1 - kept) * weight`, `kept` a scalar tensor."""
    import torch

    with torch.no_grad():
        average.mul_(kept).addcmul_(weight, 1 - kept)


def clipped(
    gradients: "Sequence[torch.Tensor | None]", norm: float
) -> "Iterator[torch.Tensor | None]":
    """Yield gradients whose global norm is at most `norm`, as new tensors."""
    import torch

    present = [gradient for gradient in gradients if gradient is not None]
    total = torch.nn.utils.get_total_norm(present)
    # No step from a norm that is not finite may go unnoticed: the factor is NaN.
    scale = (norm / total).clamp(max=1) + (total - total)
    for gradient in gradients:
        yield None if gradient is None else gradient * scale
