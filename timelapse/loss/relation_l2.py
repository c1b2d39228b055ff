"""Mean squared difference of two cosine-similarity matrices, without ever making one.

With unit rows H, Y (N,D), A = H - Y, B = H + Y and G = HH' - YY' = (AB' + BA') / 2, the sum over all pairs is

    ||G||_F^2 = [<P, Q>_F + tr(RR)] / 2,    P = A'A, Q = B'B, R = A'B, all (D,D)
    d||G||_F^2 / dH = 4 GH = A(Q + R') + B(P + R)

so the cost is O(N D^2) and the memory O(D^2) instead of O(N^2 D) and O(N^2). P, R, Q are one symmetric product
[A B]'[A B], of which only the upper part is computed; the gradient is one product more, [A B][Q + R'; P + R].

Every term holds A twice, so nothing cancels as H approaches Y; the textbook ||H'H||^2 + ||Y'Y||^2 - 2||H'Y||^2
subtracts numbers of order one. What is left: where the relations agree but the features do not (H = YQ, Q a
rotation), A is large, and in float32 the loss is exact to about 1e-9 absolute only. Training stays far above that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from timelapse.loss.relation import check_relation, exact, pair_count, through_unit_rows, unit_rows

ROWS = {"cpu": 256}  # rows worked on at once: enough for fast products, small beside (D,D); a GPU wants more
ROWS_GPU = 4096
STRIP = 256  # the symmetric product is made in strips of this many of its rows


def relation_l2(x: Tensor, y: Tensor, frames: int = 1, pairs: str = "full") -> Tensor:
    """Mean over pairs i != j of (cos(x_i, x_j) - cos(y_i, y_j))^2, for each clip.

    x: (B,N,D), rows of any length. y: (B,N,D), a constant: no gradient flows to it. N = frames * n, frame by frame.
    pairs: "full", all N(N-1) ordered pairs; "spatial", the N(n-1) within a frame; "temporal", the N(N-n) across
    frames. Each is the mean over its own pairs, so (N-1) full = (n-1) spatial + (N-n) temporal.
    Returns (B,), at least 0, in float32 (float64 for float64 x) whatever autocast and TF32 say. Once differentiable.
    """
    check_relation(x, y, frames, pairs)
    return _RelationL2.apply(x, y, frames, pairs)


class _RelationL2(torch.autograd.Function):
    """Keeps x, y and one (2D,D) matrix a clip; what single frames need beyond that is made again in backward."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, frames: int, pairs: str) -> Tensor:
        ctx.frames, ctx.pairs, ctx.count = frames, pairs, pair_count(x.shape[1], frames, pairs)
        squares, slopes = [], []
        with exact(x.device):
            for clip, target in zip(x, y):
                square, products = _square_of_clip(clip, target, frames, pairs)
                squares.append(square)
                slopes.append(_slope(products) if ctx.needs_input_grad[0] and pairs != "spatial" else None)
                del products
        ctx.save_for_backward(x, y, *slopes)
        return torch.stack(squares).clamp_min(0) / ctx.count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        x, y, *slopes = ctx.saved_tensors
        gradient = torch.empty_like(x)
        parts = 1 if ctx.pairs == "full" else ctx.frames
        with exact(x.device):
            for clip, target, out, whole, scale in zip(x, y, gradient, slopes, grad_output / ctx.count):
                for xs, ys, outs in zip(clip.chunk(parts), target.chunk(parts), out.chunk(parts)):
                    slope = whole
                    if ctx.pairs != "full":
                        within = _slope(_products(xs, ys)[0])
                        slope = within if ctx.pairs == "spatial" else whole - within
                    for at, rows, h, inverse, _ in _sides(xs, ys):
                        outs[at] = through_unit_rows(rows @ slope, h, inverse * scale)
        return gradient, None, None, None


def _square_of_clip(x: Tensor, y: Tensor, frames: int, pairs: str) -> tuple[Tensor, Tensor]:
    """||G||_F^2 over the chosen pairs i != j of one clip (N,D), and the products of all its rows."""
    if pairs == "full":
        products, diagonal = _products(x, y)
        return _square(products) - diagonal, products
    products = within = diagonal = 0
    for xs, ys in zip(x.chunk(frames), y.chunk(frames)):
        part, on_diagonal = _products(xs, ys)
        within, diagonal = within + _square(part), diagonal + on_diagonal
        products = part.add_(products)
    return (within - diagonal if pairs == "spatial" else _square(products) - within), products


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """[A B]'[A B] (2D,2D), right on and above the diagonal only, and the sum of squares on the diagonal of G.

    That sum is the number of rows with a direction in only one of x and y; elsewhere the diagonal is 1 - 1.
    """
    width = 2 * x.shape[1]
    products = x.new_zeros(width, width, dtype=torch.promote_types(x.dtype, torch.float32))
    diagonal = products.new_zeros(())
    for _, rows, _, inverse_x, inverse_y in _sides(x, y):
        for i in range(0, width, STRIP):
            products[i : i + STRIP, i:].addmm_(rows[:, i : i + STRIP].T, rows[:, i:])
        diagonal += ((inverse_x == 0) != (inverse_y == 0)).sum()
    return products, diagonal


def _sides(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
    """Chunk by chunk: where, [A B] (n,2D), H (n,D), inverse lengths of x and y (n,1). The buffer is used again."""
    tokens, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    step = ROWS.get(x.device.type, ROWS_GPU)
    buffer = x.new_empty(min(step, tokens), 2 * width, dtype=dtype)
    for start in range(0, tokens, step):
        at = slice(start, min(start + step, tokens))
        h, inverse_x = unit_rows(x[at], dtype)
        u, inverse_y = unit_rows(y[at], dtype)
        rows = buffer[: len(h)]
        torch.sub(h, u, out=rows[:, :width])
        torch.add(h, u, out=rows[:, width:])
        del u
        yield at, rows, h, inverse_x, inverse_y


def _blocks(products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, Q, R of the upper part of [A B]'[A B], P and Q made whole."""
    d = len(products) // 2
    p, q, r = products[:d, :d], products[d:, d:], products[:d, d:]
    return p.triu() + p.triu(1).T, q.triu() + q.triu(1).T, r


def _square(products: Tensor) -> Tensor:
    """||G||_F^2."""
    p, q, r = _blocks(products)
    return (p.mul_(q).sum() + (r * r.T).sum()) / 2


def _slope(products: Tensor) -> Tensor:
    """(2D,D) matrix that takes rows of [A B] to those of d||G||_F^2 / dH = 4 GH."""
    p, q, r = _blocks(products)
    return torch.cat([q.add_(r.T), p.add_(r)])
