"""SAM and GSAM: training towards weights around which the loss is flat.

Both are a training step of their own, on top of any optimizer: two forward and two
backward passes per batch. The equations are here, the steps of the three backends in
`sharpness_step.py`.

Source: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", arXiv:2010.01412; Chen et al. 2022, "When Vision Transformers
Outperform ResNets without Pre-training or Strong Data Augmentations", arXiv:2106.01548;
Zhuang et al. 2022, "Surrogate Gap Minimization Improves Sharpness-Aware Training",
arXiv:2203.08065; `big_vision/trainers/proj/gsam/gsam.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

Rho = float | tuple[float, float]
# A list of gradients, one per weight; `None` where a weight has no part in the loss.
Gradients = Sequence[Any]

# Divides instead of a norm of zero: no gradient then gives no perturbation.
_SMALLEST = float(np.finfo("float32").tiny)


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """The numbers of SAM and GSAM.

    With the gradient `g` of the loss at the weights `w`, over all trained weights
    together:

        w_p    = w + rho g / ||g||_2
        g_p    = gradient of the loss at w_p
        g_orth = g - (<g, g_p> / ||g_p||_2^2) g_p
        step   = g_p - gsam_alpha g_orth

    and the optimizer makes its step from `w` with `step` as the gradient. With
    `gsam_alpha=0` this is SAM, else GSAM.

    Attributes:
        rho: Length of the perturbation, not negative; or `(rho_min, rho_max)`, between
            which it follows the learning rate:
            `rho = rho_min + (rho_max - rho_min) (rate - rate_min) / (rate_max -
            rate_min)`, never below `rho_min`.
        gsam_alpha: Share of `g_orth` that is subtracted, not negative.
        learning_rates: `(rate_min, rate_max)` of the schedule; only for two `rho`.

    Raises:
        ValueError: If a number is out of its range, or they do not fit together.
    """

    rho: Rho
    gsam_alpha: float = 0.0
    learning_rates: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_sam(self.rho, self.gsam_alpha)
        if isinstance(self.rho, tuple):
            rates = self.learning_rates
            if rates is None or not 0 <= rates[0] <= rates[1] < math.inf:
                raise ValueError(
                    "Two values of `rho` follow the learning rate: give its lowest and "
                    "highest value. Received: "
                    f"rho={self.rho!r}, learning_rates={rates!r}"
                )

    def rho_at(self, learning_rate: Any) -> Any:
        """Return the length of the perturbation at a learning rate."""
        if not isinstance(self.rho, tuple) or self.learning_rates is None:
            return self.rho
        (rho_min, rho_max), (rate_min, rate_max) = self.rho, self.learning_rates
        if rate_min == rate_max:
            return rho_max
        # In the warm-up the rate is below the schedule's lowest.
        rate = ops.maximum(ops.cast(learning_rate, "float32"), rate_min)
        return rho_min + (rho_max - rho_min) * (rate - rate_min) / (rate_max - rate_min)

    def perturbed(
        self, weights: Sequence[Any], gradients: Gradients, learning_rate: Any
    ) -> list[Any]:
        """Return `w + rho g / ||g||_2`, each weight in its own dtype.

        Any common factor of the gradients cancels, that of a scaled loss too.
        """
        factor = self.rho_at(learning_rate) / ops.maximum(_norm(gradients), _SMALLEST)
        return [
            w if g is None else w + ops.cast(factor * _wide(g), w.dtype)
            for w, g in zip(weights, gradients, strict=True)
        ]

    def combined(self, gradients: Gradients, perturbed: Gradients) -> list[Any]:
        """Return the gradient for the optimizer.

        Args:
            gradients: Those at the weights, `g`.
            perturbed: Those at the perturbed weights, `g_p`.
        """
        if not self.gsam_alpha:
            return list(perturbed)
        pairs = list(zip(gradients, perturbed, strict=True))
        dot = sum(
            ops.sum(_wide(g) * _wide(p))
            for g, p in pairs
            if g is not None and p is not None
        )
        share = dot / ops.maximum(ops.square(_norm(perturbed)), _SMALLEST)
        return [
            p
            if g is None or p is None
            else ops.cast(
                _wide(p) - self.gsam_alpha * (_wide(g) - share * _wide(p)), p.dtype
            )
            for g, p in pairs
        ]


def check_sam(sam_rho: Any, gsam_alpha: Any) -> None:
    """Raise a `ValueError` unless these can be the numbers of SAM; 0: no SAM."""
    rhos = sam_rho if isinstance(sam_rho, tuple) else (sam_rho,)
    if not all(_is_amount(rho) for rho in rhos) or (
        isinstance(sam_rho, tuple) and (len(rhos) != 2 or not rhos[0] <= rhos[1])
    ):
        raise ValueError(
            "`sam_rho` must be a number of at least 0, or a tuple of two, the smaller "
            "first: (at the lowest learning rate, at the highest). "
            f"Received: sam_rho={sam_rho!r}"
        )
    if not _is_amount(gsam_alpha):
        raise ValueError(
            "`gsam_alpha` must be a number of at least 0. "
            f"Received: gsam_alpha={gsam_alpha!r}"
        )
    if gsam_alpha and not any(rhos):
        raise ValueError(
            "`gsam_alpha` needs a perturbation: give `sam_rho` too. Received: "
            f"sam_rho={sam_rho!r}, gsam_alpha={gsam_alpha!r}"
        )


def _is_amount(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.number)
    return is_number and not isinstance(value, bool) and 0 <= value < math.inf


def _wide(tensor: Any) -> Any:
    """Return a tensor in float32: sums of squares in half precision overflow."""
    return ops.cast(tensor, "float32")


def _norm(gradients: Gradients) -> keras.KerasTensor:
    squares = [ops.sum(ops.square(_wide(g))) for g in gradients if g is not None]
    return ops.sqrt(sum(squares))
