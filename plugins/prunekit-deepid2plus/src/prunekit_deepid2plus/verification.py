"""Measures of face verification from scores of pairs: accuracy, ROC, the area under it, rates at a false accept rate.

Higher score = more alike; a pair is accepted when its score reaches the threshold. Scores may tie; every measure
treats tied pairs as one step. This module must not know where scores come from.
"""

import math

import attrs
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Curve:
    """The ROC: what is accepted as the threshold falls, from nothing to everything.

    Attributes:
        genuine: share of the pairs of one person that is accepted, float64 ``[points]``, rising from 0 to 1.
        impostor: share of the pairs of two people that is accepted, likewise.
    """

    genuine: Tensor
    impostor: Tensor

    @property
    def area(self) -> float:
        """The chance that a genuine pair scores above an impostor pair; a tie counts half."""
        return float(torch.trapezoid(self.genuine, self.impostor))

    def true_accepts(self, false_accept_rate: float) -> float:
        """Return the greatest share of genuine pairs accepted while at most that share of impostors is."""
        # Sums of weights are rounded: a rate that is met exactly must not be missed by the last digit.
        allowed = int(torch.searchsorted(self.impostor, false_accept_rate + 1e-12, right=True))
        return float(self.genuine[allowed - 1])


def curve_of_steps(genuine: Tensor, impostor: Tensor) -> Curve:
    """Return the curve from the weight that each step of the falling threshold accepts anew.

    Args:
        genuine: weight of pairs of one person, float64 ``[steps]``; not all 0.
        impostor: weight of pairs of two people, likewise.
    """
    genuine, impostor = genuine.cumsum(0), impostor.cumsum(0)
    nothing = genuine.new_zeros(1)
    return Curve(
        torch.cat([nothing, genuine / genuine[-1]]),
        torch.cat([nothing, impostor / impostor[-1]]),
    )


def curve_of(scores: Tensor, same: Tensor, weights: Tensor | None = None) -> Curve:
    """Return the curve of scored pairs.

    Args:
        scores: ``[pairs]``.
        same: whether a pair shows one person, bool ``[pairs]``; at least one does and one does not.
        weights: how much each pair counts; all alike by default.
    """
    _, genuine, impostor = _steps(scores, same, weights)
    return curve_of_steps(genuine, impostor)


def _steps(scores: Tensor, same: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct scores, falling, and the genuine and impostor weight of each, float64."""
    weights = torch.ones_like(scores, dtype=torch.float64) if weights is None else weights.double()
    values, step = torch.unique(scores, return_inverse=True)
    genuine, impostor = (step.bincount(weights * kind, minlength=len(values)) for kind in (same, ~same))
    return values.flip(0), genuine.flip(0), impostor.flip(0)


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """Return the threshold of greatest accuracy, half way to the next lower score; of several, the highest."""
    values, genuine, impostor = _steps(scores, same)
    gain = torch.cat([genuine.new_zeros(1), (genuine - impostor).cumsum(0)])  # accepting nobody comes first
    best = int(gain.argmax())
    bounds = torch.cat([values.new_tensor([math.inf]), values, values.new_tensor([-math.inf])]).double()
    if best == 0:
        return math.inf
    return float((bounds[best] + bounds[best + 1]) / 2)


def accuracy(scores: Tensor, same: Tensor, fold: Tensor) -> tuple[float, float]:
    """Return the mean accuracy over folds, each with the threshold of the other folds, and its standard error.

    Args:
        scores: ``[pairs]``.
        same: ``[pairs]``, bool.
        fold: ``[pairs]``; at least two different values.
    """
    results = []
    for number in torch.unique(fold):
        here = fold == number
        threshold = best_threshold(scores[~here], same[~here])
        results.append(((scores[here] >= threshold) == same[here]).double().mean())
    found = torch.stack(results)
    return float(found.mean()), float(found.std() / math.sqrt(len(found)))
