"""Muon: what it does to matrices, what it leaves to AdamW, and that it resumes exactly."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from timelapse.module.optimizer import Muon, optimizer_of, orthogonal


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Conv1d(8, 4, 3)])

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.first(x)).mT).square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - 1).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (4, 16, 16)])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_one(shape):
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    s = torch.linspace(0.2, 1.0, min(shape[1:]))
    y = orthogonal(u * s @ vh)
    inner = u.mT @ y @ vh.mT  # diagonal, if singular vectors are kept
    diagonal = inner.diagonal(dim1=-2, dim2=-1)
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 1e-4
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3


def test_parameters_outside_of_blocks_and_vectors_step_as_adamw_does():
    a, b = Net(), Net()
    muon = Muon(a.named_parameters(), lr=1e-2)
    adamw = torch.optim.AdamW(b.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0)
    for net, optimizer in ((a, muon), (b, adamw)):
        train(net, optimizer, range(1))
    for name in ("first.weight", "first.bias", "blocks.0.bias", "blocks.1.bias"):
        assert torch.allclose(a.get_parameter(name), b.get_parameter(name), atol=1e-7), name
    assert not torch.allclose(a.blocks[0].weight, b.blocks[0].weight, atol=1e-4)


def test_a_matrix_step_has_the_root_mean_square_of_adamw():
    net = Net()
    before = net.blocks[0].weight.detach().clone()
    train(net, Muon(net.named_parameters(), lr=1e-2), range(1))
    step = (net.blocks[0].weight - before) / 1e-2
    values = torch.linalg.svdvals(step) / (0.2 * 8**0.5)
    assert values.max() < 1.3 and step.square().mean().sqrt() < 0.25


def test_resumes_exactly():
    whole = Net()
    losses = train(whole, Muon(whole.named_parameters(), lr=1e-2, weight_decay=0.1), range(6))
    part = Net()
    first = Muon(part.named_parameters(), lr=1e-2, weight_decay=0.1)
    begun = train(part, first, range(3))
    again, saved = deepcopy(part), deepcopy(first.state_dict())
    second = Muon(again.named_parameters(), lr=1e-2, weight_decay=0.1)
    second.load_state_dict(saved)
    assert begun + train(again, second, range(3, 6)) == losses


def test_a_schedule_reaches_both_kinds():
    net = Net()
    optimizer = Muon(net.named_parameters(), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = deepcopy(net.state_dict())
    train(net, optimizer, range(2))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_unknown_kind():
    with pytest.raises(ValueError, match="adamw8bit, muon"):
        optimizer_of("adam", [], 1e-3)
