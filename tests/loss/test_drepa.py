from __future__ import annotations

import pytest
import torch

from timelapse.loss.drepa import DRepa


def test_is_the_papers_formula_on_projected_tokens(step):
    s, loss = step(), DRepa(layer=3, width=10, feature_width=6, hidden=8)
    h = loss.projector(s.hidden[3][:, 6:])
    h, y = (torch.nn.functional.normalize(v, dim=2) for v in (h, s.batch["feature"]))
    expected = []
    for hs, ys in zip(h, y):
        pairs = [((hs[i] @ hs[j]) - (ys[i] @ ys[j])) ** 2 for i in range(18) for j in range(18) if i != j]
        expected.append(sum(pairs) / (18 * 17))
    torch.testing.assert_close(loss(s), torch.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("pairs", ["full", "spatial", "temporal"])
def test_variants_compare_the_pairs_they_name(step, naive, power, pairs):
    s, loss = step(), DRepa(layer=3, width=10, feature_width=6, hidden=8, power=power, pairs=pairs)
    expected = naive(loss.projector(s.hidden[3][:, 6:]), s.batch["feature"], 3, pairs, power=power)
    torch.testing.assert_close(loss(s), expected, rtol=1e-5, atol=1e-7)


def test_learns_relations_and_reaches_projector_and_backbone(step):
    s, loss = step(), DRepa(layer=3, width=10, feature_width=6, hidden=32)
    s.hidden[3].requires_grad_()
    optimizer = torch.optim.Adam([*loss.parameters(), s.hidden[3]], lr=0.05)
    start = loss(s).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(s).mean().backward()
        optimizer.step()
    assert loss(s).mean().item() < 0.1 * start
    assert s.hidden[3].grad[:, :6].abs().max() == 0  # the first latent frame is left out
    assert s.hidden[3].grad[:, 6:].abs().min() > 0


def test_first_latent_frame_and_other_layers_do_not_matter(step):
    s, loss = step(), DRepa(layer=3, width=10, feature_width=6, hidden=8)
    expected = loss(s)
    s.hidden[3][:, :6] = 7.0
    s.hidden[4] = torch.zeros(2, 24, 10)
    assert torch.equal(loss(s), expected)
    assert loss.taps == (3,)


def test_runs_under_bfloat16_autocast_and_on_bfloat16_tokens(step):
    s, loss = step(), DRepa(layer=3, width=10, feature_width=6, hidden=8)
    expected = loss(s)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(s)  # the projector in bfloat16, the comparison in float32
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, expected, rtol=0.05, atol=0)
    s.hidden[3] = s.hidden[3].bfloat16()
    torch.testing.assert_close(loss(s), expected, rtol=0.05, atol=0)


def test_on_one_dimension_it_is_degenerate():
    """l2-normalised scalars are +-1, so the loss sees signs alone, and has no gradient."""
    from timelapse.loss.relation_l2 import relation_l2

    truth = torch.tensor([[[1.0], [2.0], [5.0], [9.0]]], dtype=torch.float64)
    other = torch.tensor([[[7.0], [0.1], [3.0], [2.0]]], dtype=torch.float64, requires_grad=True)
    assert relation_l2(other, truth).item() == 0
    flipped = torch.tensor([[[7.0], [-0.1], [3.0], [2.0]]], dtype=torch.float64)
    assert relation_l2(flipped, truth).item() == pytest.approx(4 * 6 / 12)  # 3 of 6 pairs change from 1 to -1
    assert torch.autograd.grad(relation_l2(other, truth).sum(), other)[0].abs().max() == 0


@pytest.mark.parametrize("choice", [{"power": 3}, {"pairs": "diagonal"}])
def test_refuses_unknown_variants(choice):
    with pytest.raises(ValueError, match="is unknown"):
        DRepa(layer=3, width=10, feature_width=6, hidden=8, **choice)
