"""AdamW over trained parameters, sharded or not."""

from __future__ import annotations

import torch
from torch import nn


def adamw(
    kind: str, parameters: list[nn.Parameter], rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """kind: "adamw" (one fused kernel for all parameters), or "adamw8bit": torchao's, which keeps both moments in 8
    bits with a scale for each block of 256 (Dettmers et al. 2022, arXiv:2110.02861). It needs the package torchao and
    a compiler, and works on shards of FSDP2."""
    options = {"lr": rate, "weight_decay": weight_decay, "betas": betas}
    if kind == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    if kind != "adamw8bit":
        raise ValueError(f"module.optimizer is {kind}; expected adamw or adamw8bit")
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise ValueError("module.optimizer=adamw8bit needs torchao; pip install torchao") from None
    return AdamW8bit(parameters, **options)
