"""What the comparisons of two cosine-similarity matrices share: which pairs, unit rows, exact float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SHORT = 1e-12  # a row of smaller length has no direction: its cosine with everything is 0


def check_relation(x: Tensor, y: Tensor, frames: int, pairs: str) -> None:
    """ValueError unless (x, y, frames, pairs) is something whose pairs can be compared."""
    if x.shape != y.shape or x.ndim != 3:
        raise ValueError(f"relations compare (B,N,D) with the same (B,N,D); got {tuple(x.shape)}, {tuple(y.shape)}")
    if pairs not in ("full", "spatial", "temporal"):
        raise ValueError(f"pairs={pairs!r} is unknown; choose full, spatial or temporal")
    if frames < 1 or x.shape[1] % frames:
        raise ValueError(f"{x.shape[1]} tokens do not divide into {frames} frames")
    if pair_count(x.shape[1], frames, pairs) == 0:
        raise ValueError(f"{x.shape[1]} tokens in {frames} frames hold no {pairs} pair; use a longer or larger clip")


def pair_count(tokens: int, frames: int, pairs: str) -> int:
    """Ordered pairs i != j among all tokens ("full"), within frames ("spatial"), across frames ("temporal")."""
    n = tokens // frames
    return {"full": tokens * (tokens - 1), "spatial": tokens * (n - 1), "temporal": tokens * (tokens - n)}[pairs]


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Autocast off and true float32 products (no TF32 on CUDA, no bfloat16 on CPU) inside; restored after."""
    if hasattr(torch.backends.mkldnn, "matmul"):  # torch 2.9 on; its old names raise once the new ones were used
        knobs = [(m, "fp32_precision", "ieee") for m in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
    else:
        knobs = [(torch.backends.cuda.matmul, "allow_tf32", False)]
    before = [getattr(owner, name) for owner, name, _ in knobs]
    for owner, name, value in knobs:
        setattr(owner, name, value)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (owner, name, _), value in zip(knobs, before):
            setattr(owner, name, value)


def unit_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(n,D) -> rows of length 1 (n,D) and inverse lengths (n,1); both are 0 for a row without direction."""
    x = x.to(dtype)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    inverse = length.reciprocal().masked_fill_(length < SHORT, 0)
    return x * inverse, inverse


def through_unit_rows(gradient: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """Gradient with respect to unit = x / |x| -> gradient with respect to x, in place; 0 where `inverse` is."""
    along = (gradient * unit).sum(1, keepdim=True)
    return gradient.addcmul_(unit, along, value=-1).mul_(inverse)
