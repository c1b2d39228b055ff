from __future__ import annotations

import torch

from timelapse.loss.trd import Trd


def public_formula(align, target, margin):
    """VideoREPA's `token_relation_distillation` from (B,F,HW,C) on: each frame against all tokens, then the mean."""
    align, target = (torch.nn.functional.normalize(v, dim=-1) for v in (align, target))
    frames = align.shape[1]

    def similarity(v):  # (BF,HW,C) @ (BF,C,FHW)
        return v.flatten(0, 1) @ v.flatten(1, 2).repeat_interleave(frames, 0).mT

    return ((similarity(align) - similarity(target)).abs() - margin).relu().mean()


def test_parity_with_the_public_formula_and_its_gradient(step):
    for margin in (0.1, 0.3):
        s, loss = step(), Trd(layer=3, width=10, feature_width=6, hidden=8, margin=margin)
        expected = public_formula(
            loss.projector(s.hidden[3][:, 6:]).unflatten(1, (3, 6)), s.batch["feature"].unflatten(1, (3, 6)), margin
        )
        mine = loss(s).mean()  # the public code averages over clips as well
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)
        gradients = (torch.autograd.grad(value, loss.parameters()) for value in (mine, expected))
        for p, q in zip(*gradients):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-6)


def test_differences_inside_the_margin_are_free(step):
    s, loss = step(), Trd(layer=3, width=10, feature_width=6, hidden=8, margin=2.0)
    assert loss(s).abs().max() == 0
