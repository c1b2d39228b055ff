"""The judge and those it judges learn from the same maps, each for itself."""

from __future__ import annotations

import pytest
import torch

from timelapse.loss.adversarial import Judge, fooling_error, judge_error


def maps(seed: int, mean: float = 0.0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(4, c, side, side, generator=g) + mean for c, side in ((3, 8), (5, 4))]
    return [torch.nn.functional.normalize(m, dim=1) for m in drawn]


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    return Judge([3, 5], width=8)


def test_each_gradient_stays_on_its_side(judge):
    real, made = ([m.requires_grad_() for m in maps(seed)] for seed in (1, 2))
    judge_error(judge, real, made).backward()
    assert all(m.grad is None for m in (*real, *made))
    assert all(p.grad.abs().sum() > 0 for p in judge.parameters() if p.dim() > 1)
    before = [p.grad.clone() for p in judge.parameters()]
    fooling_error(judge, made).backward()
    assert all(m.grad.abs().sum() > 0 for m in made)
    assert all(torch.equal(p.grad, b) for p, b in zip(judge.parameters(), before))


def test_one_that_knows_nothing_loses_two_and_one_that_knows_all_nothing(judge):
    """Hinge: 1 - score of real, 1 + score of made, cut at 0."""
    judge.forward = lambda maps: [0.25 * m for m in maps]  # its score is what it is shown
    same = [torch.ones(2, 1, 3, 3)]
    assert judge_error(judge, same, same).item() == pytest.approx(0.75 + 1.25)
    assert judge_error(judge, [8 * same[0]], [-8 * same[0]]).item() == 0
    assert fooling_error(judge, same).item() == pytest.approx(-0.25)


def test_it_learns_to_tell_two_laws_apart_and_not_one_from_itself(judge):
    optimizer = torch.optim.Adam(judge.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        judge_error(judge, maps(2 * step, mean=1.0), maps(2 * step + 1)).backward()
        optimizer.step()
    assert judge_error(judge, maps(1000, mean=1.0), maps(1001)).item() < 1.0
    assert judge_error(judge, maps(1000), maps(1001)).item() > 1.8
