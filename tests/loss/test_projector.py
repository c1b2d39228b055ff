from __future__ import annotations

import pytest
import torch

from timelapse.loss.projector import Projector, aligned_tokens


def test_is_three_linear_layers_with_silu_between():
    projector, x = Projector(5, 7, 3), torch.randn(2, 4, 5)
    silu = lambda v: v * torch.sigmoid(v)
    a, b, c = (layer for layer in projector if isinstance(layer, torch.nn.Linear))
    expected = silu(silu(x @ a.weight.T + a.bias) @ b.weight.T + b.bias) @ c.weight.T + c.bias
    torch.testing.assert_close(projector(x), expected)
    assert [tuple(layer.weight.shape) for layer in (a, b, c)] == [(7, 5), (7, 7), (3, 7)]


def test_drops_the_first_latent_frame_of_tokens_ordered_by_time(step):
    s = step()
    t = torch.arange(4.0)[:, None, None].expand(4, 3, 2).reshape(1, 24, 1)
    s.hidden[3] = t.expand(2, 24, 10)
    hidden, feature, frames = aligned_tokens(s, 3, 10, 6)
    assert frames == 3
    assert torch.equal(hidden[0, :, 0].reshape(3, 6), torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 6))
    assert torch.equal(feature, s.batch["feature"])


def test_says_what_is_wrong_and_what_to_set(step):
    s = step()
    with pytest.raises(ValueError, match="layer 5 were not recorded; recorded: .3."):
        aligned_tokens(s, 5, 10, 6)
    with pytest.raises(ValueError, match="width 11 and feature width 6, got 10 and 6; set the loss's width"):
        aligned_tokens(s, 3, 11, 6)
    s.grid = (4, 3, 3)
    with pytest.raises(ValueError, match="36 hidden tokens and 27 features .* got 24 and 18"):
        aligned_tokens(s, 3, 10, 6)
    del s.batch["feature"]
    with pytest.raises(ValueError, match="choose an encoder"):
        aligned_tokens(s, 3, 10, 6)
