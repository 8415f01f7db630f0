"""Integer weights whose rounding errors make up for one another.

Rounded one by one, the weights of a sum give errors that add up, because neighboring inputs are alike. Here they are rounded one after another. What
one loses is spread over those that are still to come, as far as the inputs say that they can make up for it. This is GPTQ (Frantar et al. 2022,
arXiv:2210.17323), with the closed form of Hassibi and Stork 1993, "Optimal brain surgeon". It costs nothing when the network runs.

1. With the inputs' second moments H, the error of a row's sums is (w - q) H (w - q)'. Let U be the upper triangle with U' U = H^-1. Once weight j is
   rounded to q_j, the best that the later ones can do is to move by -(w_j - q_j) U_jk / U_jj each.
2. Inputs with much to say come first, when there are still many left that can make up for them.
3. A weight of zero stays zero: it is a place that a rewrite has filled up, or one that was pruned.
4. The largest weight of a row becomes the largest integer, so that the row's step can be read off its weights: whoever rounds them once more by
   their largest finds the same integers.
"""

import numpy as np
import torch
from numpy.typing import NDArray

DAMPING = 0.01  # of the mean second moment, added to each: of inputs that were hardly seen nothing is concluded (GPTQ's value)
STRONGER = (1, 10, 100, 1000)  # times DAMPING, where covariances are differences of large numbers and rounding made them impossible
BLOCK = 128  # columns whose errors are spread over the columns behind them at once


def compensated(weights: NDArray[np.float64], moments: NDArray[np.float64], steps: NDArray[np.float64], largest: int) -> NDArray[np.float64]:
    """The integers, -largest..largest, of weights (groups, rows, inputs) in `steps` (groups, rows).

    `moments`: of each group's inputs (groups, inputs, inputs), the mean of their products or their covariance.
    """
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2), axis=1, kind="stable")  # rule 2
    moments = np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2)
    scaled = torch.from_numpy(np.take_along_axis(weights, order[:, None, :], 2) / steps[:, :, None])
    found = _rounded_in_turn(scaled, _spread(torch.from_numpy(moments)), largest)
    result = np.empty_like(weights)
    np.put_along_axis(result, order[:, None, :], found.numpy(), 2)
    return result


def _spread(moments: torch.Tensor) -> torch.Tensor:
    """U of rule 1. With J the reversal of all rows or columns and L L' = J H J, it is the inverse of J L J.

    Of moments that no inputs can have, whatever the damping, nothing is concluded: each weight goes to its nearest integer.
    """
    inputs = moments.shape[-1]
    damping = DAMPING * torch.diagonal(moments, dim1=1, dim2=2).mean(dim=1)
    damping = torch.where(damping > 0, damping, 1.0)  # inputs that never change say nothing of any weight
    whole = torch.eye(inputs, dtype=moments.dtype).expand_as(moments)
    for times in STRONGER:
        lower, failed = torch.linalg.cholesky_ex((moments + times * damping[:, None, None] * whole).flip(1, 2))
        if not failed.any():
            break
    upper = (lower if not failed.any() else whole).flip(1, 2)
    found: torch.Tensor = torch.linalg.solve_triangular(upper, whole, upper=True)
    return found


def _rounded_in_turn(weights: torch.Tensor, spread: torch.Tensor, largest: int) -> torch.Tensor:
    """Rules 1, 3 and 4. `weights`: in steps (groups, rows, inputs)."""
    left, found, inputs = weights.clone(), torch.zeros_like(weights), weights.shape[2]
    top = weights.abs().argmax(dim=2)
    peak = torch.sign(weights.gather(2, top[:, :, None]))[:, :, 0] * largest
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        errors = torch.zeros_like(left[:, :, first:last])
        for column in range(first, last):
            integers = left[:, :, column].round().clamp(-largest, largest)
            integers = torch.where(top == column, peak, integers) * (weights[:, :, column] != 0)
            found[:, :, column] = integers
            error = (left[:, :, column] - integers) / spread[:, None, column, column]
            left[:, :, column:last] -= error[:, :, None] * spread[:, None, column, column:last]
            errors[:, :, column - first] = error
        left[:, :, last:] -= errors @ spread[:, first:last, last:]
    return found
