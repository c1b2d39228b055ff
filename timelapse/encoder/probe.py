"""What frozen features know: closed-form linear probes, and how many directions the features use."""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def ridge(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression (n,D) -> (n,K): weight (D,K), mean of x, mean of y; penalty relative to the mean
    variance of x.

    penalty: in units of the mean variance of x. Solved in the smaller of features and samples, in float64.
    """
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    strength = penalty * x.pow(2).sum() / x.shape[1] + 1e-12
    if x.shape[0] < x.shape[1]:
        eye = torch.eye(x.shape[0], dtype=x.dtype, device=x.device)
        weight = x.T @ torch.linalg.solve(x @ x.T + strength * eye, y)
    else:
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(x.T @ x + strength * eye, x.T @ y)
    return weight, x_mean, y_mean


def r2(prediction: Tensor, truth: Tensor) -> float:
    """1 - residual / variance over all columns: 1 is exact, 0 is the mean, below is worse."""
    truth = truth.double()
    return 1 - ((prediction - truth).pow(2).sum() / (truth - truth.mean(0)).pow(2).sum()).item()


def accuracy(prediction: Tensor, truth: Tensor) -> float:
    """Share of rows whose largest entry is that of the one-hot truth, in [0,1]."""
    return (prediction.argmax(1) == truth.argmax(1)).double().mean().item()


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, groups: int = 1, score=r2) -> float:
    """Score on the test rows of the ridge regression whose penalty did best on a held-out fifth of the
    training rows.

    x (n,D) features, y (n,K) targets (one-hot for classes, with score=accuracy). groups: consecutive rows
    that belong together (frames of a clip) and are held out together.
    """
    std = x.std(0).clamp_min(1e-6)
    x, x_test = x / std, x_test / std
    cut = x.shape[0] // groups * 4 // 5 * groups

    def scored(penalty: float, rows: slice, x_new: Tensor, y_new: Tensor) -> float:
        weight, x_mean, y_mean = ridge(x[rows], y[rows], penalty)
        return score((x_new.double() - x_mean) @ weight + y_mean, y_new)

    best = max(PENALTIES, key=lambda p: scored(p, slice(0, cut), x[cut:], y[cut:]))
    return scored(best, slice(None), x_test, y_test)


def effective_rank(tokens: Tensor) -> Tensor:
    """(n,D) -> scalar in [1,D]: exp of the entropy of the normalised eigenvalues of the covariance of the
    tokens.

    Of the eigenvalues (variances), not of the singular values as in Roy & Vetterli 2007.
    """
    x = (tokens - tokens.mean(0)).cpu().double()  # which Apple's GPUs have not
    values = torch.linalg.eigvalsh(x.T @ x).clamp_min(0)
    share = values / values.sum().clamp_min(1e-30)
    return torch.exp(-(share * share.clamp_min(1e-30).log()).sum()).float()
