"""Temporal self-attention of a diffusers video network: maps recorded by layer name, or replayed turned by 180 degrees.

"Generative Inbetweening" (Wang et al. 2024, arXiv:2408.15239, section 4.1): map A of the forward clip tells how frames
attend to each other; A turned by 180 degrees tells the same of the reversed clip. The paper prints
A'[N-j, N-k] = A[j, k], which is off by one: with frames 0..N-1 it is A'[N-1-j, N-1-k]. Maps are kept after the
softmax, a head each, as the public code does (the paper defines them before it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LAYER = re.compile(r"temporal_transformer_blocks\.\d+\.attn1$")  # SVD has 16 of them; attn2 looks at the image


def rotate(attention_map: Tensor) -> Tensor:
    """Turned by 180 degrees: both of the last two axes flipped. Rows still sum to 1."""
    return attention_map.flip((-2, -1))


class Maps(dict[str, Tensor]):
    """Layer name -> map (clips x places, heads, N, N)."""

    @property
    def nbytes(self) -> int:
        """Memory that the stored maps hold."""
        return sum(m.numel() * m.element_size() for m in self.values())


@dataclass(frozen=True)
class Use:
    """What temporal self-attention does during one pass of the network.

    record: filled with the maps of `layers`. replay: recorded maps that `layers` read, rotated, in place of their own
    (without gradient, each is dropped once read).
    mirror: the second half of the batch is the reverse of the first and reads the first half's maps, rotated: what
    record and replay do in two passes, in one and with no map kept. layers: the rotated ones.
    weights: "<layer>.to_v.weight" and the like -> matrix that stands in for the layer's own, for the replayed pass or
    for the mirrored half.
    """

    record: Maps | None = None
    replay: Maps | None = None
    mirror: bool = False
    layers: frozenset[str] = frozenset()
    weights: Mapping[str, Tensor] = field(default_factory=dict)


PLAIN = Use()


class TemporalAttention:
    """Takes over the temporal self-attention layers of `network`; `layers` are their names, in the network's order.

    Maps are kept by name, so that gradient checkpointing, which runs a layer again, cannot pair them wrongly; a
    checkpointed block that runs again (`checkpoint`) does so under the `Use` it first ran under, whenever that is.
    """

    def __init__(self, network: nn.Module):
        self.now = PLAIN
        self.layers = [name for name, _ in network.named_modules() if LAYER.search(name)]
        if not self.layers:
            raise ValueError(
                f"attention: {type(network).__name__} has no temporal self-attention; expected an SVD UNet"
            )
        own = {f"{name}.processor": Processor(name, self) for name in self.layers}
        network.set_attn_processor({**network.attn_processors, **own})

    @contextmanager
    def use(self, use: Use) -> Iterator[None]:
        before, self.now = self.now, use
        try:
            yield
        finally:
            self.now = before

    def checkpoint(self, module: Callable[..., Any], *args: Any) -> Any:
        """For `network.enable_gradient_checkpointing`."""

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self.use(self.now)

        return checkpoint(partial(module), *args, use_reentrant=False, context_fn=contexts)


class Processor:
    """diffusers' attention processor of one layer; without a `Use` it is the stock one."""

    def __init__(self, name: str, control: TemporalAttention):
        self.name, self.control = name, control
        self.stock = AttnProcessor2_0()

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.control.now is PLAIN:
            return self.stock(attn, hidden_states, *args, **kwargs)
        return self.steered(attn, hidden_states)

    @torch.compiler.disable  # maps go in and out of Python dicts; the rest of the block stays compiled
    def steered(self, attn: nn.Module, x: Tensor) -> Tensor:
        """x (B', N, C) -> (B', N, C), B' = clips x places, clips outermost."""
        use = self.control.now
        rotated = self.name in use.layers
        if use.mirror:
            forward, backward = x.chunk(2)
            own = self.map(attn, forward, {})
            theirs = rotate(own) if rotated else self.map(attn, backward, use.weights)
            return torch.cat([self.read(attn, own, forward, {}), self.read(attn, theirs, backward, use.weights)])
        if use.replay is not None and rotated:
            if self.name not in use.replay:
                raise ValueError(f"attention: no map was recorded for {self.name}; record and replay the same layers")
            # Sampling reads a map once and lets it go; training may run a checkpointed layer again.
            take = use.replay.__getitem__ if torch.is_grad_enabled() else use.replay.pop
            return self.read(attn, rotate(take(self.name)), x, use.weights)
        own = self.map(attn, x, use.weights)
        if use.record is not None and rotated:
            use.record[self.name] = own.detach()
        return self.read(attn, own, x, use.weights)

    def map(self, attn: nn.Module, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """softmax(Q K' / sqrt(d)): (B', heads, N, N)."""
        query, key = (self.project(attn, part, x, weights) for part in ("to_q", "to_k"))
        return (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)

    def read(self, attn: nn.Module, attention_map: Tensor, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """W_o A V."""
        value = attention_map.to(x.dtype) @ self.project(attn, "to_v", x, weights)
        out, name = attn.to_out[0], f"{self.name}.to_out.0.weight"
        return F.linear(value.transpose(1, 2).flatten(2), weights.get(name, out.weight).to(x.dtype), out.bias)

    def project(self, attn: nn.Module, part: str, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """(B', N, C) -> (B', heads, N, d)."""
        layer = getattr(attn, part)
        weight = weights.get(f"{self.name}.{part}.weight", layer.weight).to(x.dtype)
        return F.linear(x, weight, layer.bias).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
