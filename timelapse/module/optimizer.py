"""Optimizers over trained parameters, sharded or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("adamw", "adamw8bit", "muon")


def optimizer_of(
    kind: str,
    parameters: Iterable[tuple[str, nn.Parameter]],
    rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """The optimizer of those (name, parameter) that are trained.

    kind: "adamw" (one fused kernel for all parameters); "adamw8bit": torchao's, which keeps both moments in 8 bits with
    a scale for each block of 256 (Dettmers et al. 2022, arXiv:2110.02861), needs the package torchao and a compiler,
    and works on shards of FSDP2; or "muon": `Muon`, which needs whole matrices.
    """
    named = [(name, p) for name, p in parameters if p.requires_grad]
    options: dict[str, Any] = {"lr": rate, "weight_decay": weight_decay, "betas": tuple(betas)}
    if kind == "adamw":
        return torch.optim.AdamW([p for _, p in named], fused=True, **options)
    if kind == "muon":
        return Muon(named, **options)
    if kind != "adamw8bit":
        raise ValueError(f"module.optimizer is {kind}; expected one of {', '.join(KINDS)}")
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise ValueError("module.optimizer=adamw8bit needs torchao; pip install torchao") from None
    return AdamW8bit([p for _, p in named], **options)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices inside of blocks, AdamW for the rest.

    The momentum of a matrix (of a convolution: output channels by all else) is replaced by the nearest matrix with
    singular values of about one, by a Newton-Schulz iteration, and scaled to the root mean square 0.2 that AdamW's
    steps have (arXiv:2502.16982, eq. 4), so that one learning rate and weight decay serve both. `torch.optim.Muon`
    takes neither convolutions nor other parameters, and iterates in bfloat16, which processors emulate; here it is
    float32, in one batch for all matrices of a shape.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        iterations: int = 5,
    ):
        matrices, rest = [], []
        for name, p in named:
            inside = "block" in name or "layer" in name
            (matrices if p.ndim >= 2 and inside else rest).append(p)
        for p in matrices:
            if hasattr(p, "device_mesh"):
                raise ValueError("module.optimizer=muon needs whole matrices; type trainer=ddp or =adamw")
        options = {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas), "eps": 1e-8}
        super().__init__(
            [{"params": matrices, "matrix": True}, {"params": rest, "matrix": False}],
            {**options, "momentum": momentum, "iterations": iterations},
        )
        self._adamw = torch.optim.AdamW([{**options, "params": rest}], fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["matrix"]:
                self._step_matrices(group)
            else:
                self._adamw.state = self.state  # loading a state replaces it
                self._adamw.param_groups[0].update({k: group[k] for k in ("params", "lr", "weight_decay", "betas")})
                self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                alike[(p.shape[0], p[0].numel())].append(p)
        for (rows, columns), parameters in alike.items():
            updates = []
            for p in parameters:
                held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                held.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(held, group["momentum"]).reshape(rows, columns))  # Nesterov's look ahead
            scale = 0.2 * max(rows, columns) ** 0.5
            for p, update in zip(parameters, orthogonal(torch.stack(updates), group["iterations"])):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(n,r,c) -> the same with singular values of about one (0.7 to 1.2) and the same singular vectors.

    Quintic Newton-Schulz iteration with Jordan's coefficients, which do not converge to one but get near it fast.
    """
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    wide = x.mT if x.shape[1] > x.shape[2] else x
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), wide, beta=3.4445)
    return wide.mT if x.shape[1] > x.shape[2] else wide
