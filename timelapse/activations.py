"""What autograd keeps of a forward pass for the backward pass, counted by torch's hooks; works on the meta device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Kept(defaultdict):
    """Where -> storages that autograd keeps, by number; where: of a block, "ends" outside of blocks, "inputs"."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.where: int | str = "ends"

    def add(self, x: Tensor, where: int | str | None = None) -> None:
        storage = x.untyped_storage()
        self[self.where if where is None else where][storage._cdata] = storage

    def sizes(self) -> dict[str, float]:
        """Bytes, each storage once."""
        size = lambda *groups: float(sum(s.nbytes() for s in {n: s for g in groups for n, s in g.items()}.values()))
        blocks = [group for where, group in self.items() if isinstance(where, int)]
        return {
            "kept": size(*blocks, self["ends"]),
            "inputs": size({n: s for n, s in self["inputs"].items() if n not in self["ends"]}),
            "ends": size(self["ends"]),
            "block": max(map(size, blocks), default=0.0),
        }


@contextmanager
def kept_for_backward(backbone: nn.Module) -> Iterator[Kept]:
    """What autograd keeps of what the backbone does within, its own weights left out."""
    kept, own = Kept(), {x.untyped_storage()._cdata for x in (*backbone.parameters(), *backbone.buffers())}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept.add(x)
        return x

    def enter(number: int, *given: Any) -> None:
        kept.where = number
        for x in tree_leaves(given[1:]):  # after the block itself
            if isinstance(x, Tensor):
                kept.add(x, "inputs")

    def leave(*_: Any) -> None:
        kept.where = "ends"

    hooks = []
    for number, block in enumerate(backbone.blocks()):
        hooks.append(block.register_forward_pre_hook(partial(enter, number), with_kwargs=True))
        hooks.append(block.register_forward_hook(leave))
    try:
        with saved_tensors_hooks(pack, lambda x: x):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()


class Kernels(TorchFunctionMode):
    """Attention keeps what its kernels keep, and no matrix; on the meta device torch would take the plain formula."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args)) | kwargs
        return Attention.apply(named["query"], named["key"], named["value"])


class Attention(torch.autograd.Function):
    """Shapes and what is kept of flash attention: no numbers, no backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(...,heads,N,d) each -> (...,heads,N,d), which lies in memory as (...,N,heads,d)."""
        out = query.transpose(-2, -3).new_empty(query.transpose(-2, -3).shape).transpose(-2, -3)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1]))
        return out
