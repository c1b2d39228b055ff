from __future__ import annotations

import math

import torch

from timelapse.loss.repa import Repa


def test_is_minus_the_mean_cosine_of_each_token_with_its_feature(step):
    s, loss = step(), Repa(layer=3, width=10, feature_width=6, hidden=8)
    h, y = loss.projector(s.hidden[3])[:, 6:].tolist(), s.batch["feature"].tolist()
    for b, value in enumerate(loss(s).tolist()):
        cosines = [
            sum(p * q for p, q in zip(u, v)) / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))
            for u, v in zip(h[b], y[b])
        ]
        assert math.isclose(value, -sum(cosines) / 18, rel_tol=1e-4)


def test_minus_one_when_aligned_and_plus_one_when_opposed(step):
    s, loss = step(), Repa(layer=3, width=10, feature_width=6, hidden=8)
    h = loss.projector(s.hidden[3])[:, 6:].detach()
    s.batch["feature"] = h * torch.linspace(0.1, 9, 18)[:, None]  # whatever the lengths
    torch.testing.assert_close(loss(s), -torch.ones(2))
    s.batch["feature"] = -h
    torch.testing.assert_close(loss(s), torch.ones(2))


def test_unlike_drepa_it_sees_a_common_rotation(step):
    s, loss = step(), Repa(layer=3, width=10, feature_width=6, hidden=8)
    s.batch["feature"] = loss.projector(s.hidden[3])[:, 6:].detach().roll(1, dims=2)
    assert (loss(s) > -0.9).all()
