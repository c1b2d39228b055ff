"""Mean absolute difference of two cosine-similarity matrices, beyond a margin, in tiles of bounded size.

An absolute value does not factorise as the square in `relation_l2` does, so every pair has to be looked at: cost
O(N^2 D). Memory is one tile of TILE x TILE pairs; symmetry halves the tiles, and backward makes each again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from timelapse.loss.relation import check_relation, exact, pair_count, through_unit_rows, unit_rows

TILE = 1024  # 4 MiB a tile in float32


def relation_l1(
    x: Tensor, y: Tensor, frames: int = 1, pairs: str = "full", margin: float = 0.0, diagonal: bool = False
) -> Tensor:
    """Mean over pairs of relu(|cos(x_i, x_j) - cos(y_i, y_j)| - margin), for each clip.

    x: (B,N,D), rows of any length. y: (B,N,D), a constant. N = frames * n, frame by frame. pairs: "full",
    "spatial" (same frame) or "temporal" (different frames). diagonal: whether i = j counts as a pair too (its term
    is 0 unless one of the two rows is 0). Returns (B,) in float32 (float64 for float64 x). Once differentiable.
    """
    check_relation(x, y, frames, pairs)
    return _RelationL1.apply(x, y, frames, pairs, margin, diagonal)


class _RelationL1(torch.autograd.Function):
    """Keeps x and y only."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, frames: int, pairs: str, margin: float, diagonal: bool) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.tiling = frames, pairs, diagonal
        ctx.margin = margin
        ctx.count = pair_count(x.shape[1], frames, pairs) + (x.shape[1] if diagonal and pairs != "temporal" else 0)
        sums = []
        with exact(x.device):
            for clip, target in zip(x, y):
                total = clip.new_zeros((), dtype=torch.promote_types(x.dtype, torch.float32))
                for row, column, difference, *_ in _tiles(clip, target, *ctx.tiling):
                    beyond = difference.abs_().sub_(margin).clamp_min_(0).sum()
                    total += beyond if row == column else 2 * beyond
                sums.append(total)
        return torch.stack(sums) / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        gradient = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        with exact(x.device):
            for clip, target, out, scale in zip(x, y, gradient, grad_output / ctx.count):
                for row, column, difference, h_row, h_column in _tiles(clip, target, *ctx.tiling):
                    sign = difference.sign() * (difference.abs() > ctx.margin)
                    out[row].addmm_(sign, h_column)
                    if row != column:
                        out[column].addmm_(sign.T, h_row)
                for rows, outs in zip(clip.split(TILE), out.split(TILE)):
                    unit, inverse = unit_rows(rows, out.dtype)
                    outs.copy_(through_unit_rows(outs, unit, inverse * (2 * scale)))  # 2: i and j both move
        return gradient.to(x.dtype), None, None, None, None, None


def _tiles(
    x: Tensor, y: Tensor, frames: int, pairs: str, diagonal: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Tiles on and above the diagonal: rows, columns, difference of cosines (n,m), unit rows of x for both sides."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    n = len(x) // (1 if pairs == "full" else frames)
    spans = [
        (frame, slice(start, min(start + TILE, (frame + 1) * n)))
        for frame in range(len(x) // n)
        for start in range(frame * n, (frame + 1) * n, TILE)
    ]
    for i, (frame, row) in enumerate(spans):
        h_row, u_row = unit_rows(x[row], dtype)[0], unit_rows(y[row], dtype)[0]
        for other, column in spans[i:]:
            if (pairs == "spatial" and other != frame) or (pairs == "temporal" and other == frame):
                continue
            h_column, u_column = unit_rows(x[column], dtype)[0], unit_rows(y[column], dtype)[0]
            difference = (h_row @ h_column.T).addmm_(u_row, u_column.T, alpha=-1)
            if row == column and not diagonal:
                difference.fill_diagonal_(0)
            yield row, column, difference, h_row, h_column
